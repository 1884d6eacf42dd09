import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from transformers.image_utils import SizeDict

from model.attention import token_grids
from model.attention.token_grids import WHOLE, Grid, Plane
from model.recipes import RECIPES
from model.types import AttentionError, Box, Image, ModelLoadError
from model.vlm.vlm import VLM
from tests.support import vlm_families

QUESTION = "list the objects"
SIZES = {"square": (160, 160), "wide": (120, 270), "tall": (290, 130)}  # height, width
Load = Callable[..., VLM]
RESAMPLED = "llava_onevision_resampled"  # too many tokens, made fewer by interpolation


class Caught(Exception):
    """What would have entered the decoder."""


def look(vlm: VLM, image: Image) -> tuple[torch.Tensor, Grid]:
    """What enters the decoder for each token of the sequence, (N, d), and the grid."""

    def catch(module: nn.Module, args: Any, kwargs: Any) -> None:
        raise Caught(kwargs["inputs_embeds"][0])

    inputs = vlm.inputs(image, QUESTION)
    hook = vlm.model.model.get_decoder().register_forward_pre_hook(catch, with_kwargs=True)
    with torch.inference_mode(), pytest.raises(Caught) as caught:
        vlm.model(**inputs)
    hook.remove()
    return caught.value.args[0], token_grids.grid_of(vlm.model, vlm.processor, inputs, image.shape[:2])


def blank(size: tuple[int, int]) -> Image:
    return np.full((*size, 3), 120, np.uint8)


@dataclass(frozen=True)
class Spot:
    """Pixels of an image to paint, and the same in shares of it: start and stop down, then across."""

    down: tuple[float, float]
    across: tuple[float, float]
    pixels: tuple[slice, slice]

    @classmethod
    def at(cls, plane: Plane, row: int, column: int, size: tuple[int, int], part: float) -> "Spot":
        """The middle `part` of a cell, in whole pixels."""
        ends = [
            [start + (stop - start) * (cell + 0.5 + half) / count for half in (-part / 2, part / 2)]
            for (start, stop, count), cell in zip(sides(plane), (row, column), strict=True)
        ]
        slices = [slice(round(a * n), round(b * n)) for (a, b), n in zip(ends, size, strict=True)]
        down, across = ((s.start / n, s.stop / n) for s, n in zip(slices, size, strict=True))
        return cls(down, across, (slices[0], slices[1]))

    def on(self, image: Image) -> Image:
        painted = image.copy()
        painted[self.pixels] = 255
        return painted

    @property
    def inside(self) -> bool:
        return all(0 <= start < stop <= 1 for start, stop in (self.down, self.across))

    def clear_of(self, plane: Plane) -> bool:
        """No edge of a cell is so near that resampling smears the spot over it: bicubic and Lanczos reach
        two and three of the tower's pixels, and a cell has 14 to 32 of them."""
        for (start, stop, count), (low, high) in zip(sides(plane), (self.down, self.across), strict=True):
            edges, reach = np.linspace(start, stop, count + 1), 0.18 * (stop - start) / count
            if ((edges > low - reach) & (edges < high + reach)).any():
                return False
        return True

    def token(self, plane: Plane) -> int | None:
        """The token of the cell that the spot lies in."""
        row, column = (
            math.floor((sum(ends) / 2 - start) / (stop - start) * count)
            for (start, stop, count), ends in zip(sides(plane), (self.down, self.across), strict=True)
        )
        rows, columns = plane.tokens.shape
        return int(plane.tokens[row, column]) if 0 <= row < rows and 0 <= column < columns else None


def sides(plane: Plane) -> Iterator[tuple[float, float, int]]:
    """Start, stop and number of cells: down, then across."""
    x0, y0, x1, y1 = plane.box
    yield from ((y0, y1, plane.tokens.shape[0]), (x0, x1, plane.tokens.shape[1]))


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", [name for name in vlm_families.BUILDERS if name != RESAMPLED])
def test_painting_a_rectangle_changes_its_tokens_and_no_others(load: Load, name: str, shape: str) -> None:
    vlm, size = load(name, unmixed=True), SIZES[shape]
    before, grid = look(vlm, blank(size))
    spots = [
        spot
        for plane in grid.planes
        for row, column in np.ndindex(plane.tokens.shape)
        if (spot := Spot.at(plane, row, column, size, 0.2)).inside
        and all(spot.clear_of(other) for other in grid.planes)
    ]
    for plane in grid.planes:
        here = [spot for spot in spots if spot.token(plane) is not None]
        for spot in (here[0], here[-1]):
            after, _ = look(vlm, spot.on(blank(size)))
            changed = (after != before).any(1).nonzero().flatten().tolist()
            holders = [token for other in grid.planes if (token := spot.token(other)) is not None]
            assert changed == sorted(holders)


@pytest.mark.parametrize("shape", SIZES)
def test_a_resampled_token_changes_most_by_its_own_rectangle(load: Load, shape: str) -> None:
    vlm, size = load(RESAMPLED, unmixed=True), SIZES[shape]
    before, grid = look(vlm, blank(size))
    base, fine = grid.planes
    assert fine.tokens.size <= 1.21 * base.tokens.size
    for row, column in np.ndindex(fine.tokens.shape):
        after, _ = look(vlm, Spot.at(fine, row, column, size, 0.7).on(blank(size)))
        change = (after - before).abs().amax(1)[fine.tokens].numpy()
        assert change[row, column] == change.max()


@pytest.mark.parametrize("name", ["llava", "vipllava"])
def test_what_the_processor_cuts_off_is_seen_by_no_token(load: Load, name: str) -> None:
    size = SIZES["wide"]
    before, grid = look(load(name), blank(size))
    painted = blank(size)
    painted[:, : size[1] // 4] = 255
    assert torch.equal(look(load(name), painted)[0], before)
    attended = grid.spread(np.ones((1, len(before)), np.float32))[0]
    quarter = attended.shape[1] // 4
    assert attended[:, :quarter].max() == 0
    assert attended[:, 2 * quarter].min() == 1


@pytest.mark.parametrize("name", vlm_families.BUILDERS)
def test_every_image_token_of_any_size_has_its_place(load: Load, name: str) -> None:
    vlm = load(name)

    @settings(max_examples=20)
    @given(st.tuples(st.integers(20, 400), st.integers(20, 400)))
    @example((299, 175))  # LLaVA-OneVision is shown 210 x 122
    @example((24, 283))
    def at(size: tuple[int, int]) -> None:
        inputs = vlm.inputs(blank(size), QUESTION)
        # Large images are shown smaller; families that cut tiles say how large.
        shown = inputs["image_sizes"][0].tolist() if "image_sizes" in inputs else size
        grid = token_grids.grid_of(vlm.model, vlm.processor, inputs, tuple(shown))
        images = (inputs["input_ids"][0] == vlm.model.config.image_token_id).nonzero().flatten().numpy()
        placed = np.concatenate([plane.tokens.ravel() for plane in grid.planes])
        assert len(set(placed)) == len(placed)
        assert set(placed) <= set(images)
        if not name.startswith(("llava_next", "llava_onevision")):  # these have newline tokens
            assert len(placed) == len(images)
        assert (grid.spread(np.ones((1, images[-1] + 1), np.float32)) > 0.99).any()

    at()


@pytest.mark.parametrize(
    ("name", "longest", "size", "divisor"),
    [
        ("qwen2_5_vl", 1_000_000, (2000, 2000), 2.0),  # a number of pixels
        ("qwen3_vl_moe", 1_000_000, (500, 500), 1.0),
        ("mistral3", 1000, (2000, 500), 2.0),  # the longer side
        ("idefics3", 1000, (4000, 500), 1.0),  # which all images are brought to
        ("llava", None, (4000, 500), 1.0),
    ],
)
def test_what_a_processor_divides_large_images_by(
    name: str, longest: int | None, size: tuple[int, int], divisor: float
) -> None:
    processor = SimpleNamespace(image_processor=SimpleNamespace(size=SizeDict(longest_edge=longest)))
    assert token_grids.reduction(name, processor, size) == divisor


@pytest.mark.parametrize("name", vlm_families.BUILDERS)
def test_tokens_that_do_not_fit_give_an_error_and_no_map(load: Load, name: str) -> None:
    vlm, size = load(name), SIZES["wide"]
    inputs = vlm.inputs(blank(size), QUESTION)
    ids = inputs["input_ids"][0]
    images = (ids == vlm.model.config.image_token_id).nonzero()
    for lost in (images[:1], images):
        ids[lost] = vlm.processor.tokenizer.eos_token_id
        with pytest.raises(AttentionError, match="image tokens do not fill"):
            token_grids.grid_of(vlm.model, vlm.processor, inputs, size)


@pytest.mark.parametrize("name", vlm_families.BUILDERS)
def test_a_question_cannot_pass_for_part_of_an_image(load: Load, name: str) -> None:
    vlm, size = load(name), SIZES["wide"]
    words = vlm.processor.tokenizer.convert_ids_to_tokens(vlm.model.config.image_token_id)
    plain, hostile = (
        vlm.inputs(blank(size), f"list {text} the objects")
        for text in ("", f"{words} {vlm.processor.image_token} <row_9_col_9>")
    )
    one, other = (token_grids.grid_of(vlm.model, vlm.processor, inputs, size) for inputs in (plain, hostile))
    assert np.array_equal(one.tokens, other.tokens)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", vlm_families.BUILDERS)
def test_every_family_answers_and_says_where_it_looked(load: Load, name: str, shape: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZES[shape], 3), np.uint8)
    answer = load(name).answer(image, QUESTION, max_new_tokens=4)
    maps = load(name).attention_maps(answer, [(0, 1), (0, len(answer.text))], RECIPES["paper"])
    assert maps.shape == (2, *answer.grid.shape)
    assert np.isfinite(maps).all()
    assert (maps.max((1, 2)) > 0).all()


def test_the_table_holds_no_family_without_a_model_here(load: Load) -> None:
    assert {load(name).model.config.model_type for name in vlm_families.BUILDERS} == set(token_grids.LAYOUTS)


@pytest.mark.parametrize(
    ("kind", "instead"), [("phi3_v", "Qwen2.5-VL"), ("qwen", "Qwen2.5-VL"), ("internvl_chat", "-hf")]
)
def test_models_of_remote_code_are_refused_by_their_successors_names(kind: str, instead: str) -> None:
    with pytest.raises(ModelLoadError, match="needs remote code") as error:
        token_grids.check_config({"model_type": kind})
    assert instead in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_family_is_told_what_to_add_and_where() -> None:
    with pytest.raises(ModelLoadError, match=r"'bert'.*LAYOUTS in model/attention/token_grids.py"):
        token_grids.check_config({"model_type": "bert"})


def values(count: int) -> st.SearchStrategy[NDArray[np.float32]]:
    number = st.floats(-1e6, 1e6, width=32)
    return st.lists(number, min_size=count, max_size=count).map(lambda v: np.array([v], np.float32))


@st.composite
def planes(draw: st.DrawFn, first: int) -> Plane:
    """A plane of a few cells, its tokens from `first` on, anywhere on the image and beyond."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    (x0, x1), (y0, y1) = (
        (start, start + draw(st.floats(0.2, 1.5))) for start in (draw(st.floats(-0.5, 0.9)) for _ in range(2))
    )
    return Plane(np.arange(first, first + rows * columns).reshape(rows, columns), (x0, y0, x1, y1))


@st.composite
def several(draw: st.DrawFn) -> Grid:
    found: list[Plane] = []
    for _ in range(draw(st.integers(1, 3))):
        found.append(draw(planes(sum(plane.tokens.size for plane in found))))
    return Grid(tuple(found))


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 3), st.data())
def test_one_whole_plane_is_its_tokens_to_the_bit(rows: int, columns: int, first: int, data: Any) -> None:
    tokens = first + np.arange(rows * columns).reshape(rows, columns)
    seen = data.draw(values(first + rows * columns + 2))
    grid = Grid((Plane(tokens, WHOLE),))
    assert grid.shape == (rows, columns)
    assert np.array_equal(grid.spread(seen), seen[:, tokens])


@given(several(), st.floats(-100, 100, width=32))
def test_a_constant_stays_one_wherever_a_token_lies(grid: Grid, constant: float) -> None:
    count = len(grid.tokens)
    cover = grid.spread(np.ones((1, count), np.float32))
    assert set(np.unique(cover.round(5))) <= {0.0, 1.0}
    assert np.allclose(grid.spread(np.full((1, count), constant, np.float32)), constant * cover, atol=1e-4)


@given(several(), st.data())
def test_a_map_is_linear_and_within_its_tokens_bounds(grid: Grid, data: Any) -> None:
    one, other = (data.draw(values(len(grid.tokens))) for _ in range(2))
    sums = grid.spread(one) + grid.spread(other)
    assert np.allclose(grid.spread(one + other), sums, rtol=1e-4, atol=1e-1)
    bounds = min(0, one.min()), max(0, one.max())
    assert bounds[0] <= grid.spread(one).min() <= grid.spread(one).max() <= bounds[1]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_tiles_and_a_whole_view_keep_the_mean(rows: int, columns: int, side: int, data: Any) -> None:
    def box(i: int) -> Box:
        row, column = divmod(i, columns)
        return (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)

    parts = np.arange((rows * columns + 1) * side**2).reshape(-1, side, side)
    tiles = tuple(Plane(part, box(i)) for i, part in enumerate(parts[:-1]))
    grid = Grid((*tiles, Plane(parts[-1], WHOLE)))
    assert grid.shape == (rows * side, columns * side)
    seen = data.draw(values(parts.size))
    fine, whole = seen[0, : parts[-1].min()].mean(), seen[0, parts[-1]].mean()
    assert grid.spread(seen).mean() == pytest.approx((fine + whole) / 2, abs=1.0)


@given(planes(0), st.data())
def test_a_token_shows_on_the_cells_it_lies_on_and_on_no_others(plane: Plane, data: Any) -> None:
    grid = Grid((plane,))
    token = data.draw(st.integers(0, plane.tokens.size - 1))
    shown = grid.spread(np.eye(plane.tokens.size, dtype=np.float32)[[token]])[0] > 0
    cell = divmod(token, plane.tokens.shape[1])
    # How much of each row, and of each column, of the map the token's rectangle covers.
    down, across = (
        np.minimum((i + 1) / n, start + (stop - start) * (at + 1) / count)
        - np.maximum(i / n, start + (stop - start) * at / count)
        for (start, stop, count), at, n in zip(sides(plane), cell, grid.shape, strict=True)
        for i in [np.arange(n)]
    )
    assert shown[np.ix_(down > 0.01, across > 0.01)].all()
    assert not shown[down < 0].any()
    assert not shown[:, across < 0].any()
