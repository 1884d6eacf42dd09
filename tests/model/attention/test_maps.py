import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from model.attention import maps

Maps = NDArray[np.float32]

stacks = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
    elements=st.floats(0, 10, width=32),
)


def spot(row: int, column: int, height: float = 1.0) -> Maps:
    found = np.zeros((6, 8), np.float32)
    found[row, column] = height
    return found


def test_the_background_is_subtracted() -> None:
    found = maps.against(np.stack([spot(1, 1) + spot(4, 4)]), spot(4, 4))
    assert found[0, 1, 1] == 1
    assert found[0, 4, 4] == 0


def test_what_all_terms_share_goes() -> None:
    shared = spot(5, 7, 2)
    found = maps.against_each_other(np.stack([spot(1, 1) + shared, spot(3, 3) + shared]))
    assert found[0].argmax() == spot(1, 1).argmax()
    assert found[1].argmax() == spot(3, 3).argmax()
    alone = np.stack([spot(1, 1)])
    assert maps.against_each_other(alone) is alone


def test_a_cell_that_stands_out_of_every_map_is_levelled_and_an_object_is_not() -> None:
    sink = spot(5, 7, 50)
    found = maps.level_sinks(np.stack([spot(1, 1, 9) + sink + 1, spot(3, 3, 9) + sink + 1]))
    assert found[:, 5, 7].max() == 1
    assert found[0, 1, 1] == 10


def test_smoothing_spreads_a_spot_and_zero_does_not() -> None:
    one = np.stack([spot(2, 2)])
    assert maps.smoothed(one, 0) is one
    assert 0 < maps.smoothed(one, 1)[0, 2, 3] < maps.smoothed(one, 1)[0, 2, 2] < 1


@given(stacks)
def test_maps_stay_finite_and_normalised_ones_fill_0_to_1(stack: Maps) -> None:
    for found in (maps.normalised(stack), maps.against_each_other(stack), maps.level_sinks(stack)):
        assert found.shape == stack.shape
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
    for each in maps.normalised(stack):
        assert each.max() == 0 or (each.min() == 0 and each.max() == 1)
