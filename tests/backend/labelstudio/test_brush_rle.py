import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from label_studio_sdk.converter.brush import decode_rle, encode_rle, mask2rle

from backend.labelstudio import brush_rle
from backend.labelstudio.region_reading import ReadingBudget, TooMuch
from model.types import Mask
from tests.support.detections import disc

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
alphas = st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255)


def painted(stream: list[int], shape: tuple[int, int], budget: ReadingBudget | None = None) -> Mask:
    mask: Mask = np.zeros(shape[0] * shape[1], bool)
    last = 0
    spans = brush_rle.spans(np.array(stream, np.uint8), shape, (budget or ReadingBudget()).spend)
    for begin, end in spans.edges.reshape(-1, 2):
        assert last <= begin < end
        mask[begin:end] = True
        last = end
    mask = mask.reshape(shape)
    assert spans.area == mask.sum()
    left, top, right, bottom = spans.window
    assert (spans.paint() == mask[top:bottom, left:right]).all()
    assert spans.area == spans.paint().sum()
    if mask.any():
        rows, columns = np.nonzero(mask)
        assert (top, bottom) == (rows.min(), rows.max() + 1)
        assert (left, right) in [(columns.min(), columns.max() + 1), (0, shape[1])]
    every = np.argwhere(np.ones(shape))[:, ::-1] + 0.5
    assert [spans.hold(point[None]) for point in every[:200]] == mask.ravel()[:200].tolist()
    return mask


def theirs(stream: list[int], shape: tuple[int, int]) -> Mask:
    return np.asarray(decode_rle(stream).reshape(*shape, 4)[:, :, 3] >= 128)


@pytest.fixture(params=[1 << 16, 8], ids=["at once", "in many windows"])
def window(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brush_rle, "WINDOW", request.param)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("window")
@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.uint8, shape, elements=alphas, fill=alphas)))
def test_what_the_sdk_writes_of_a_brush_is_read_as_the_sdk_reads_it(alpha: Any) -> None:
    stream = encode_rle(np.repeat(alpha.ravel(), 4).astype(int))
    assert (painted(stream, alpha.shape) == theirs(stream, alpha.shape)).all()


@pytest.mark.slow
@pytest.mark.usefixtures("window")
@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.uint8, (*shape, 4), elements=alphas, fill=alphas)))
def test_alpha_alone_counts_where_the_channels_differ(pixels: Any) -> None:
    """So there are literals, too: single values that are no run."""
    stream = encode_rle(pixels.ravel().astype(int))
    assert (painted(stream, pixels.shape[:2]) == (pixels[:, :, 3] >= 128)).all()


@pytest.mark.slow
@given(SHAPES.flatmap(lambda shape: arrays.arrays(bool, shape)))
@example(disc(700, 500, 300, width=1400, height=1000))  # of runs with more than 65 536 values
@example(np.random.default_rng(0).random((300, 400)) < 0.5)
@example(np.ones((300, 400), bool))
def test_our_own_masks_come_back(mask: Mask) -> None:
    assert (painted(brush_rle.encode(mask), (mask.shape[0], mask.shape[1])) == mask).all()


@given(SHAPES.flatmap(lambda shape: arrays.arrays(bool, shape)))
@example(disc(700, 500, 300, width=1400, height=1000))
@example(np.ones((200, 200), bool))
def test_run_lengths_are_those_of_the_sdk(mask: Mask) -> None:
    ours, sdk = brush_rle.encode(mask), mask2rle(mask.astype(np.uint8) * 255)
    assert ours == sdk[: len(ours)]
    assert sdk[len(ours) :] in ([], [0])


def written(*codes: tuple[int, int], total: int, sizes: tuple[int, ...] = (3, 4, 8, 16)) -> list[int]:
    """Return a stream of (number, bits) after its head."""
    head = [(total, 32), (7, 5), *((size - 1, 4) for size in sizes)]
    bits = "".join(f"{number:0{count}b}" for number, count in [*head, *codes])
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def test_the_sizes_of_lengths_are_the_streams_own() -> None:
    # A run of 8 values 255 by 3 bits; a literal of 4 values by 2 bits; a run of 12 by 16.
    codes = [(0b1_00, 3), (7, 3), (255, 8), (0b0_01, 3), (3, 2), (1, 8), (2, 8), (3, 8), (200, 8)]
    stream = written(*codes, (0b1_11, 3), (11, 16), (0, 8), total=24, sizes=(3, 2, 1, 16))
    assert painted(stream, (1, 6)).tolist() == [[True, True, True, False, False, False]]
    assert (painted(stream, (1, 6)) == theirs(stream, (1, 6))).all()


@pytest.mark.usefixtures("window")
def test_a_literal_may_be_longer_than_what_is_looked_at_together() -> None:
    values = [0, 0, 0, 255] * 50
    stream = written((0b0_11, 3), (199, 16), *((value, 8) for value in values), total=200)
    assert painted(stream, (5, 10)).all()


def test_values_beyond_the_image_do_not_count() -> None:
    stream = written((0b1_11, 3), (65_535, 16), (255, 8), (0b1_11, 3), (9, 16), (255, 8), total=24)
    assert painted(stream, (2, 3)).all()


@pytest.mark.parametrize("shape", [(59, 80), (61, 80), (3000, 4000), (1, 1)])
def test_run_lengths_of_another_size_are_refused_before_any_work(shape: tuple[int, int]) -> None:
    """Without this check a smaller image's mask would be read as the upper part of a larger one's."""
    budget = ReadingBudget(units=0)
    with pytest.raises(ValueError, match="another size"):
        painted(brush_rle.encode(disc(40, 30, 20)), shape, budget)


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        ([], "another size"),
        ([0, 0, 0, 24, 0b00111_001], "another size"),
        ([0, 0, 0, 24, 0b00110_001, 0, 0, 0, 255], "8 bits"),
        ([0, 0, 0, 24, 0b11111_001, 0, 0, 0, 255], "8 bits"),
        ([*written(total=24), 0], "end early"),
        (written((0b1_00, 3), (7, 3), (255, 8), total=24), "end early"),
        (written((0b0_11, 3), (23, 16), (255, 8), total=24), "end early"),
        (written((0b1_00, 3), (7, 3), (15, 4), total=24)[:9], "end early"),
    ],
)
def test_streams_that_are_no_mask(stream: list[int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        painted(stream, (2, 3))


@given(st.lists(st.integers(0, 255), max_size=80), st.booleans())
def test_any_stream_is_a_mask_or_refused(tail: list[int], usual: bool) -> None:
    head = [0, 0, 0, 192, *([0b00111_001, 0, 0b01101111] if usual else [])]  # of 6 x 8 pixels
    try:
        painted([*head, *tail], (6, 8))
    except ValueError:
        return


@pytest.mark.parametrize("byte", [0, 0x24, 0x80], ids=hex)
def test_f18_the_work_on_a_bomb_is_counted_before_it_is_done(byte: int) -> None:
    """Four megabytes of codes for an image that could use them all."""
    stream = [*written(total=4 * 10**7)[:6], *[byte] * 4_000_000]
    budget = ReadingBudget(units=30_000_000)
    with pytest.raises((TooMuch, ValueError)):
        painted(stream, (1000, 10_000), budget)
    assert budget.units >= 0


# As text


def read(text: bytes) -> list[int]:
    return [int(number) for number in brush_rle.numbers(memoryview(text), ReadingBudget().spend)]


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=60), st.sampled_from([",", ", ", " ,\n\t", "\r\n, "])
)
def test_numbers_are_read_as_json_reads_them(numbers: list[int], between: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brush_rle, "WINDOW", 16)
        assert read(between.join(map(str, numbers)).encode()) == numbers
        assert read(json.dumps(numbers, indent=1)[1:-1].encode()) == numbers


@pytest.mark.parametrize(
    "text",
    [
        b"1,-2,3", b"1,2.5", b"1e2", b"256", b"1,300,2", b"999", b"1000,2", b"1,,2", b"1,", b",1", b"1 2",
        b"null", b"1,true", b"\xff", b"1,2\0", b"0000255", b"", b" ", b"1," * 40_000 + b"256", b"7" * 200_000,
    ],
)  # fmt: skip
def test_other_numbers_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        read(text)
