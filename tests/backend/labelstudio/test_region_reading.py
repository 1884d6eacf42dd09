import base64
import io
import json
import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from backend.labelstudio import brush_rle, geometry, region_reading, results
from backend.labelstudio.brush_rle import Spans
from backend.labelstudio.region_reading import UNITS, OutOfTime, ReadingBudget, RegionCache, TooMuch
from model.deadline import Deadline
from model.patches import Patch
from model.segmentation.non_maximum_suppression import iou
from model.types import Mask
from tests.support.detections import disc

masks = arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


def decoded_within(result: dict[str, Any], shape: tuple[int, int], budget: ReadingBudget) -> Mask | None:
    """Return the mask of a result. Raises TooMuch."""
    drawn = region_reading.read(result, shape, budget)
    return None if drawn is None else drawn.patch.mask


def test_a_rectangle_may_be_turned() -> None:
    value = {"x": 50, "y": 20, "width": 20, "height": 20, "rotation": 90}
    mask = region_reading.decode({"type": "rectanglelabels", "value": value}, (100, 100))
    assert mask is not None
    rows, columns = np.nonzero(mask)
    # About its first corner, clockwise: now it lies left of x = 50.
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (30, 49, 20, 39)


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"type": "brushlabels", "value": None},
        {"type": "brushlabels", "value": {"format": "rle", "rle": None}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": []}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": [1, 2, 3]}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": [0, 0, 0, 192, 58, 55]}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": [0, 0, 0, 192, 58, 55, 0, 0, 0]}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": [256] * 20}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": [255] * 20}},  # asks for 4 GB
        {"type": "brushlabels", "value": {"touches": [{"relativePoints": [1, 2]}]}},
        {"type": "brushlabels", "value": {"maskDataURL": "data:image/png;base64,AAAA"}},
        {"type": "polygonlabels", "value": {"points": [[1, 2], [3, 4]]}},
        {"type": "polygonlabels", "value": {"points": [[1, 2], [3, "x"], [4, 5]]}},
        {"type": "polygonlabels", "value": {"points": [[1, 2], [3, float("nan")], [4, 5]]}},
        {"type": "polygonlabels", "value": {"points": [[1, 2]] * 30_000}},
        {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 0, "height": 9}},
        {"type": "rectanglelabels", "value": {"x": 1e308, "y": 1, "width": 1e308, "height": 9}},
        {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 5}},
        {"type": "keypointlabels", "value": {"x": 1, "y": 1}},
        {"type": "labels", "value": {"x": 1, "y": 1, "width": 50, "height": 50, "labels": ["Cat"]}},
        {"type": ["brush"], "value": {"x": 1}},
        {"type": "brush", "value": {"maskDataURL": "data:image/jpeg;base64,AAAA"}},
        {"type": "brush", "value": {"maskDataURL": "data:image/png;base64," + "A" * 400}},
        {"type": "brush", "value": {"maskDataURL": 7}},
        {"type": "brush", "value": {"touches": 7}},
        {"type": "brush", "value": {"touches": [{"relativePoints": [], "relativeStrokeWidth": 3}]}},
        {"type": "brush", "value": {"touches": [{"relativePoints": [1, 2, 3], "relativeStrokeWidth": 3}]}},
        {"type": "brush", "value": {"touches": [{"relativePoints": [1] * 50_000, "relativeStrokeWidth": 3}]}},
        {"type": "bitmask", "value": {}},
        {"type": "bitmask", "value": {"imageDataURL": "data:image/png;base64,?"}},
        {"type": "ellipse", "value": {"x": 1, "y": 1, "radiusX": 0, "radiusY": 9}},
        {"type": "ellipse", "value": {"x": 1, "y": 1, "radiusX": float("nan"), "radiusY": 9}},
        {"type": "vector", "value": {"closed": True, "vertices": [{"x": 1, "y": 2}]}},
        {"type": "vector", "value": {"closed": True, "vertices": "abc"}},
        {"type": "vector", "value": {"vertices": [{"x": 0, "y": 0}, {"x": 90, "y": 0}, {"x": 0, "y": 90}]}},
    ],
)
def test_what_is_no_mask_of_this_image_decodes_to_nothing(result: dict[str, Any]) -> None:
    assert region_reading.decode(result, (6, 8)) is None


def test_a_brush_of_another_size_decodes_to_nothing() -> None:
    value = results.encode(disc(40, 30, 9), "brush")
    assert region_reading.decode({"type": "brushlabels", "value": value}, (60, 79)) is None


def png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_pngs_of_other_programs(mode: str) -> None:
    mask = disc(40, 30, 9)
    black = Image.merge("LA", [Image.new("L", (80, 60)), Image.fromarray(mask.astype(np.uint8) * 255)])
    decoded = region_reading.decode(
        {"type": "bitmask", "value": {"imageDataURL": png(black.convert(mode))}}, (60, 80)
    )
    assert decoded is not None
    assert (decoded == mask).all()


def test_a_png_without_transparency_paints_everything_as_in_the_editor() -> None:
    value = {"imageDataURL": png(Image.new("L", (80, 60)))}
    decoded = region_reading.decode({"type": "bitmasklabels", "value": value}, (60, 80))
    assert decoded is not None
    assert decoded.all()


def test_a_smaller_png_is_scaled_and_a_larger_one_refused() -> None:
    value = results.encode(disc(40, 30, 20), "bitmask")
    bitmask = {"type": "bitmask", "value": value}
    decoded = region_reading.decode(bitmask, (120, 160))
    assert decoded is not None
    assert iou(decoded, disc(80, 60, 40, width=160, height=120)) > 0.95
    assert region_reading.decode(bitmask, (30, 40)) is None


def touch(kind: str, *points: float, width: float = 25.0) -> dict[str, Any]:
    return {"id": "t", "type": kind, "relativePoints": list(points), "relativeStrokeWidth": width}


def test_a_draft_is_its_mask_with_the_strokes_on_top_in_their_order() -> None:
    value = {
        "maskDataURL": results.png(disc(20, 30, 10)),
        "touches": [touch("add", 75, 50, 75, 50), touch("eraser", 25, 0, 25, 100, width=10)],
    }
    decoded = region_reading.decode({"type": "brushlabels", "value": value}, (60, 80))
    assert decoded is not None
    assert decoded[30, [12, 20, 28, 60]].tolist() == [True, False, True, True]
    # The width is percent of the width: a dot of 20 pixels.
    assert 260 < decoded[:, 40:].sum() < 360
    swapped = {**value, "touches": [*value["touches"][::-1], touch("add", 25, 50, 25, 50)]}
    decoded = region_reading.decode({"type": "brush", "value": swapped}, (60, 80))
    assert decoded is not None
    assert decoded[30, 20]


def test_the_editor_paints_the_png_of_a_draft_and_not_its_run_lengths() -> None:
    value = {"rle": brush_rle.encode(disc(20, 30, 9)), "maskDataURL": results.png(disc(60, 30, 9))}
    decoded = region_reading.decode({"type": "brush", "value": value}, (60, 80))
    assert decoded is not None
    assert (decoded == disc(60, 30, 9)).all()


def test_a_ghost_is_no_region() -> None:
    """Accepting makes one of each selected label: a prompt's type, with the mask's run lengths."""
    value = {**(results.encode(disc(40, 30, 9), "brush") or {}), "keypointlabels": ["Cat"]}
    assert region_reading.decode({"type": "keypointlabels", "value": value}, (60, 80)) is None


BIG = (3000, 4000)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(*chunks: bytes) -> str:
    return region_reading.PNG + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def head(width: int, height: int, *kind: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *(kind or (1, 3)), 0, 0, 0))


PALETTE, END = chunk(b"PLTE", b"\xff" * 6), chunk(b"IEND", b"")


PIXELS = chunk(b"IDAT", zlib.compress(bytes(6 * 2)))


ZEROS = zlib.compress(bytes(10**6))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"rle": 10**14}, "not a list"),
        ({"rle": 1.5}, "not a list"),
        ({"rle": "1,2,3"}, "not a list"),
        ({"rle": {"0": 1}}, "not a list"),
        ({"rle": [0, 0, 0, 192, 57.0]}, "not a list"),
        ({"rle": [[0]] * 20}, "not a list"),
        ({"rle": [True] * 20}, "not a list"),
        ({"rle": [-1] * 20}, "range"),
        ({"rle": [256] * 20}, "range"),
        ({"rle": [10**400] * 20}, "range"),
        ({"rle": [0] * 10**6}, "another size"),
        ({"maskDataURL": png_of(head(1, 1), head(30_000, 30_000), PALETTE, END)}, "broken PNG"),
        ({"maskDataURL": png_of(PALETTE, head(8, 6), PIXELS, END)}, "broken PNG"),
        ({"maskDataURL": png_of(head(8, 6), PALETTE, PIXELS)}, "broken PNG"),
        ({"maskDataURL": png_of(head(8, 6), PALETTE, struct.pack(">I", 2**32 - 1) + b"IDAT")}, "broken PNG"),
        ({"maskDataURL": png_of(head(9, 6), PALETTE, PIXELS, END)}, "larger"),
        ({"maskDataURL": png_of(head(0, 6), PALETTE, PIXELS, END)}, "larger"),
        ({"maskDataURL": png_of(head(8, 6), PALETTE, END)}, "Error"),
        ({"maskDataURL": png_of(head(8, 6, 3, 5), PIXELS, END)}, "Error"),
        ({"maskDataURL": png_of(head(8, 6)[:-1] + b"?", PALETTE, PIXELS, END)}, "Error"),
        ({"maskDataURL": png_of(head(8, 6), PALETTE, chunk(b"IDAT", b"no zlib"), END)}, "Error"),
        ({"touches": [{"relativePoints": [1, 2, 3], "relativeStrokeWidth": 3}]}, "inhomogeneous"),
        ({"touches": [{"relativePoints": "1234", "relativeStrokeWidth": 3}]}, "pairs"),
        ({"touches": [{"relativePoints": [1, 2], "relativeStrokeWidth": float("nan")}]}, "far outside"),
        ({"touches": [{"relativePoints": [1, 10**400], "relativeStrokeWidth": 3}]}, "OverflowError"),
        ({"touches": [{"relativePoints": [1, 2], "relativeStrokeWidth": [3]}]}, "TypeError"),
        ({"touches": [{"relativePoints": []}] * 10_001}, "10000 strokes"),
        ({"touches": [{"relativePoints": [1] * 20_002}]}, "10000 points"),
        ({"touches": {"type": "add"}}, "strokes"),
        ({"touches": ["add"]}, "TypeError"),
    ],
)
def test_what_cannot_be_read_is_told_and_takes_nothing_along(value: dict[str, Any], why: str) -> None:
    budget = ReadingBudget()
    drawn = region_reading.read({"type": "brushlabels", "id": "a\nb", "value": value}, (6, 8), budget)
    assert drawn is None
    (told,) = budget.unread
    assert told.startswith("brushlabels 'a\\nb': ")
    assert why in told
    assert len(told) < 200


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("rectangle", ("x", "y", "width", "height")), ("ellipse", ("x", "y", "radiusX", "radiusY"))],
)
def test_lists_in_place_of_numbers_are_refused(kind: str, keys: tuple[str, ...]) -> None:
    budget = ReadingBudget()
    value = {key: [20] for key in (*keys, "rotation")}
    assert region_reading.read({"type": kind, "value": value}, (6, 8), budget) is None
    assert "TypeError" in budget.unread[0]


def test_texts_and_profiles_of_a_png_are_not_unpacked() -> None:
    """Each of these is a thousand times larger than it looks."""
    bombs = [
        chunk(b"zTXt", b"a\0\0" + ZEROS),
        chunk(b"iCCP", b"a\0\0" + ZEROS),
        chunk(b"iTXt", b"a\0\1\0\0\0" + ZEROS),
    ]
    value = {"maskDataURL": png_of(head(8, 6), PALETTE, *bombs * 100, PIXELS, END)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("PIL.PngImagePlugin.MAX_TEXT_CHUNK", 1)  # who unpacks them has an error
        decoded = region_reading.decode({"type": "brush", "value": value}, (6, 8))
    assert decoded is not None
    assert decoded.all()


def strokes(count: int) -> dict[str, Any]:
    each = [touch("add", *[10 + number % 80, 10] * 2, width=1) for number in range(count)]
    return {"type": "brush", "value": {"touches": each}}


def zigzag(points: int) -> dict[str, Any]:
    return {
        "type": "polygon",
        "value": {"points": [[100 * n / points, 100 * (n % 2)] for n in range(points)]},
    }


def noise() -> dict[str, Any]:
    runs = brush_rle.encode(np.random.default_rng(0).random((300, 400)) < 0.5)
    return {"type": "brush", "value": {"rle": runs}}


WORK: list[tuple[dict[str, Any], tuple[int, int], float]] = [
    (zigzag(100), BIG, 3e6 + 60e6),  # 300 000 crossings and 12 megapixels
    (zigzag(10_000), BIG, 300e6 + 60e6),
    (strokes(1000), BIG, 1e8),
    ({"type": "brush", "value": {"touches": [touch("add", *[0, 0, 100, 100] * 100, width=50)]}}, BIG, 1e9),
    (noise(), (300, 400), 1e7),
    ({"type": "bitmask", "value": results.encode(disc(40, 30, 9), "bitmask")}, (60, 80), 1e5),
    ({"type": "bitmask", "value": results.encode(disc(40, 30, 9), "bitmask")}, BIG, 6e7),
    ({"type": "ellipse", "value": {"x": 50, "y": 50, "radiusX": 50, "radiusY": 50}}, BIG, 7e7),
    ({"type": "rectangle", "value": {"x": 0, "y": 0, "width": 100, "height": 100}}, BIG, 6e7),
]


@pytest.mark.slow
@pytest.mark.parametrize(("result", "shape", "work"), WORK)
def test_f18_reading_a_region_is_counted(result: dict[str, Any], shape: tuple[int, int], work: float) -> None:
    """In nanoseconds, about: so however many regions a body holds, no request takes longer than its bound."""
    budget = ReadingBudget()
    assert decoded_within(result, shape, budget) is not None
    assert work / 4 < UNITS - budget.units < 4 * work
    few = ReadingBudget(units=(UNITS - budget.units) / 2)
    with pytest.raises(TooMuch):
        decoded_within(result, shape, few)


SMALL: dict[str, tuple[dict[str, Any], float]] = {
    "polygon": ({"points": [[1, 1], [9, 1], [9, 9]]}, 150e3),
    "vector": ({"closed": True, "vertices": [{"x": 1, "y": 1}, {"x": 9, "y": 1}, {"x": 9, "y": 9}]}, 150e3),
    "rectangle": ({"x": 1, "y": 1, "width": 9, "height": 9}, 150e3),
    "ellipse": ({"x": 50, "y": 50, "radiusX": 9, "radiusY": 9}, 200e3),
    "brush": ({"rle": brush_rle.encode(disc(40, 30, 9))}, 150e3),
    "bitmask": ({"imageDataURL": results.png(disc(40, 30, 9))}, 100e3),
}


@pytest.mark.parametrize("kind", SMALL)
def test_f18_however_small_a_region_is_it_takes_its_time(kind: str) -> None:
    """A body of 10 MB holds 70 000 of them."""
    value, work = SMALL[kind]
    budget = ReadingBudget()
    assert decoded_within({"type": kind, "value": value}, (60, 80), budget) is not None
    assert work / 1.5 < UNITS - budget.units < 1.5 * work


def test_f18_a_png_of_16_bits_takes_twice_the_time() -> None:
    spent = []
    for bits in (8, 16):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 800, 600, bits, 6, 0, 0, 0))
        pixels = chunk(b"IDAT", zlib.compress((b"\0" + b"\xff" * (800 * bits // 2)) * 600))
        budget = ReadingBudget()
        value = {"maskDataURL": png_of(header, pixels, END)}
        assert decoded_within({"type": "brush", "value": value}, (600, 800), budget) is not None
        spent.append(UNITS - budget.units)
    assert spent[1] - spent[0] >= 20 * 800 * 600


@pytest.mark.parametrize("result", [zigzag(100), strokes(10), noise(), *(case for case, _, _ in WORK[5:])])
def test_after_the_deadline_nothing_is_read(result: dict[str, Any]) -> None:
    late = ReadingBudget(deadline=Deadline(0))
    with pytest.raises(OutOfTime):
        decoded_within(result, (300, 400), late)


@pytest.mark.slow
@pytest.mark.parametrize("points", [4, 100])
def test_a_region_is_painted_only_where_somebody_looks_at_it(points: int) -> None:
    budget = ReadingBudget()
    drawn = region_reading.read(zigzag(points), BIG, budget)
    assert drawn is not None
    before = budget.units
    left, top, right, bottom = drawn.window
    assert not drawn.holds(np.array([[left - 1, top], [right, bottom], [right + 5.0, top]]))
    assert not drawn.may_be(Patch.of(disc(3985, 2900, 12, width=4000, height=3000)), 0.1)
    assert budget.units == before
    assert drawn.holds(np.array([[1000.0, y] for y in range(3000)]))
    assert budget.units < before - 4e7


def test_run_lengths_are_looked_at_without_being_painted() -> None:
    mask = np.random.default_rng(2).random((60, 80)) < 0.5
    budget = ReadingBudget()
    drawn = region_reading.read({"type": "brush", "value": {"rle": brush_rle.encode(mask)}}, (60, 80), budget)
    assert drawn is not None
    before = budget.units
    assert drawn.holds(np.argwhere(mask)[:1, ::-1] + 0.5)
    assert not drawn.holds(np.argwhere(~mask)[:, ::-1] + 0.5)
    assert drawn.may_be(Patch.of(mask), 1.0)
    assert not drawn.may_be(Patch.of(np.ones((60, 80), bool)), 0.7)
    third = mask & (np.arange(60) < 20)[:, None]
    assert drawn.may_be(Patch.of(third), 0.25)
    assert not drawn.may_be(Patch.of(third), 0.25, 0.5)
    assert budget.units == before


def test_comparing_masks_counts_as_work() -> None:
    budget = ReadingBudget()
    drawn = region_reading.read(zigzag(4), BIG, budget)
    assert drawn is not None
    whole = Patch.of(np.ones(BIG, bool))
    assert drawn.patch.area
    before = budget.units
    assert drawn.iou(whole) == pytest.approx(0.25)
    assert before - budget.units == 3001 * 3000  # the pixels that both may have


def test_run_lengths_that_come_again_are_not_decoded_again() -> None:
    kept = RegionCache()
    mask = np.random.default_rng(1).random((60, 80)) < 0.5
    for spent_before in (False, True):
        budget = ReadingBudget(cache=kept)
        decoded = decoded_within(
            {"type": "brush", "value": {"rle": brush_rle.encode(mask)}}, (60, 80), budget
        )
        assert np.array_equal(decoded, mask)  # type: ignore[arg-type]
        assert (UNITS - budget.units < 200_000) == spent_before
    # In an image of another size they are another mask.
    budget = ReadingBudget(cache=kept)
    other = decoded_within({"type": "brush", "value": {"rle": brush_rle.encode(mask)}}, (80, 60), budget)
    assert np.array_equal(other, mask.reshape(80, 60))  # type: ignore[arg-type]


@given(masks.filter(lambda mask: bool(mask.any())), st.booleans())
def test_run_lengths_are_painted_in_their_window(mask: Mask, as_text: bool) -> None:
    stream = brush_rle.encode(mask)
    given = memoryview(json.dumps(stream)[1:-1].encode()) if as_text else stream
    drawn = region_reading.read(
        {"type": "brush", "value": {"rle": given}}, (mask.shape[0], mask.shape[1]), ReadingBudget()
    )
    assert drawn is not None
    assert (drawn.patch.mask == mask).all()


lines = st.lists(
    st.builds(
        touch,
        st.sampled_from(["add", "eraser"]),
        *[st.floats(-20, 120)] * 6,
        width=st.floats(0, 40) | st.floats(0, 400),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.slow
@given(lines, st.booleans())
def test_strokes_are_those_of_a_canvas_as_large_as_the_image(
    touches: list[dict[str, Any]], below: bool
) -> None:
    mask = disc(20, 30, 10) if below else np.zeros((60, 80), bool)
    value = {"touches": touches, **({"rle": brush_rle.encode(mask)} if below else {})}
    canvas = mask.astype(np.uint8)
    for each in touches:
        points = np.clip(np.reshape(each["relativePoints"], (-1, 2)) * (0.8, 0.6), -320, 320)
        geometry.stroke(canvas, points, each["relativeStrokeWidth"] * 0.8, add=each["type"] == "add")
    decoded = region_reading.decode({"type": "brush", "value": value}, (60, 80))
    assert (canvas == (decoded if decoded is not None else 0)).all()


@given(st.lists(st.integers(0, 255), max_size=60))
def test_hostile_rle_never_raises(tail: list[int]) -> None:
    rle = [0, 0, 0, 192, *tail]  # of 6 x 8 pixels
    mask = region_reading.decode({"type": "brushlabels", "value": {"rle": rle}}, (6, 8))
    assert mask is None or mask.shape == (6, 8)


@given(st.lists(st.tuples(*[st.floats(-1e9, 1e9)] * 2), min_size=3, max_size=8))
def test_hostile_rings_never_raise(points: list[tuple[float, float]]) -> None:
    value = {"points": [list(point) for point in points]}
    mask = region_reading.decode({"type": "polygonlabels", "value": value}, (6, 8))
    assert mask is None or mask.shape == (6, 8)


def test_work_is_spent_until_there_is_none_left() -> None:
    budget = ReadingBudget(units=10)
    budget.spend(4)
    with pytest.raises(TooMuch, match="simplify or delete"):
        budget.spend(7)
    budget.spend(6)
    assert budget.units == 0


def test_f18_nothing_is_read_after_the_deadline() -> None:
    ReadingBudget(deadline=Deadline(60, clock=lambda: 59)).spend(1)
    with pytest.raises(OutOfTime, match="in time"):
        ReadingBudget(units=math.inf, deadline=Deadline(60, clock=lambda: 60)).spend(0)


def test_what_is_longest_unused_is_forgotten_first() -> None:
    kept = RegionCache(capacity=3 * (800 + 500))
    spans = {name: Spans(1, np.full(200, number, np.int32)) for number, name in enumerate("abcd")}
    for name in "abc":
        kept.put(name, spans[name])
    assert kept.get("a") is spans["a"]
    kept.put("d", spans["d"])
    assert kept.get("b") is None
    assert [kept.get(name) is spans[name] for name in "acd"] == [True] * 3


def test_what_is_larger_than_all_room_is_not_kept() -> None:
    kept = RegionCache(capacity=1000)
    kept.put("small", Spans(1, np.zeros(2, np.int32)))
    kept.put("large", Spans(1, np.zeros(2000, np.int32)))
    assert kept.get("large") is None
    assert kept.get("small") is not None
