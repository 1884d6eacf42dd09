import base64
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

from backend.labelstudio import brush_rle, geometry, labeling_config, region_reading, results
from backend.labelstudio.geometry import Patch
from backend.labelstudio.region_reading import UNITS, OutOfTime, ReadingBudget, RegionCache, TooMuch
from model.deadline import Deadline
from model.segmentation.non_maximum_suppression import iou
from model.types import Mask
from tests.support.detections import disc
from tests.support.labeling_configs import CONFIG

masks = arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))
EXACT = ("brush", "bitmask")


def there_and_back(mask: Mask, shape: str, *, compact: bool = False) -> Mask:
    value = json.loads(json.dumps(results.encode(mask, shape, compact=compact)))
    decoded = region_reading.decode({"type": shape, "value": value}, (mask.shape[0], mask.shape[1]))
    assert decoded is not None
    return decoded


@given(masks, st.sampled_from(EXACT), st.booleans())
def test_a_brush_and_a_bitmask_are_the_mask_exactly(mask: Mask, shape: str, compact: bool) -> None:
    if not mask.any():
        assert results.encode(mask, shape, compact=compact) is None
        return
    assert (there_and_back(mask, shape, compact=compact) == mask).all()


@given(masks.filter(lambda mask: bool(mask.any())))
def test_the_sdk_reads_our_brush(mask: Mask) -> None:
    value = results.encode(mask, "brush")
    assert value is not None
    assert all(type(number) is int for number in value["rle"])
    alpha = decode_rle(value["rle"]).reshape(*mask.shape, 4)[:, :, 3]
    assert (alpha == mask * 255).all()


@given(masks | st.sampled_from([disc(700, 500, 300, width=1400, height=1000), np.ones((200, 200), bool)]))
def test_run_lengths_are_those_of_the_sdk(mask: Mask) -> None:
    ours, theirs = results.rle(mask), mask2rle(mask.astype(np.uint8) * 255)
    assert ours == theirs[: len(ours)]
    assert theirs[len(ours) :] in ([], [0])


def test_a_click_is_never_answered_with_a_mask_that_label_studio_would_not_save() -> None:
    """1.23.2 submits the first `maskDataURL` of a region, whatever replaced it since."""
    assert results.encode(disc(20, 30, 9), "brush", compact=True) == results.encode(disc(20, 30, 9), "brush")


@given(masks.filter(lambda mask: bool(mask.any())))
def test_anybody_reads_our_png(mask: Mask) -> None:
    """Opaque where the mask is, and white: the editor looks at alpha in one place and at red in another."""
    bitmask = results.encode(mask, "bitmask")
    assert bitmask is not None
    picture = Image.open(io.BytesIO(base64.b64decode(bitmask["imageDataURL"].partition(",")[2])))
    red, _, _, alpha = np.moveaxis(np.asarray(picture.convert("RGBA")), -1, 0)
    assert (alpha == mask * 255).all()
    assert (red == 255).all()


@given(masks.filter(lambda mask: bool(mask.any())))
def test_a_rectangle_is_the_tight_box(mask: Mask) -> None:
    rows, columns = np.nonzero(mask)
    box = np.zeros_like(mask)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert (there_and_back(mask, "rectangle") == box).all()


@pytest.mark.parametrize("shape", ["polygon", "vector", "ellipse"])
def test_an_outline_comes_back_alike(shape: str) -> None:
    assert iou(there_and_back(disc(40, 30, 20), shape), disc(40, 30, 20)) > 0.97


@given(
    masks.filter(lambda mask: bool(mask.any())), st.sampled_from(["polygon", "vector", "ellipse", "keypoint"])
)
def test_f23_coordinates_are_plain_numbers_within_what_label_studio_takes(mask: Mask, shape: str) -> None:
    value = results.encode(mask, shape, compact=True)
    assert value is not None
    points = value.get("points") or [[v["x"], v["y"]] for v in value.get("vertices", [value])]
    assert all(type(number) is float and 0 <= number <= 100 for point in points for number in point)
    assert value.get("radiusX", 50.0) <= 50
    assert value.get("radiusY", 50.0) <= 50


def test_f22_a_mask_of_several_parts_with_a_hole_is_one_ring() -> None:
    mask = (disc(25, 30, 20) & ~disc(25, 30, 8)) | disc(65, 30, 8)
    for shape in ("polygon", "vector"):
        assert iou(there_and_back(mask, shape), mask) > 0.95


def test_an_ellipse_that_does_not_fit_is_for_clicks_only() -> None:
    apart = disc(15, 30, 10) | disc(65, 30, 10)
    assert results.encode(apart, "ellipse") is None
    assert results.encode(apart, "ellipse", compact=True) is not None


def test_a_keypoint_is_the_deepest_pixel_and_reads_as_no_mask() -> None:
    value = results.encode(disc(30.5, 20.5, 9), "keypoint")
    assert value == {"x": pytest.approx(100 * 30.5 / 80), "y": pytest.approx(100 * 20.5 / 60), "width": 0.75}
    assert region_reading.decode({"type": "keypointlabels", "value": value}, (60, 80)) is None


@pytest.mark.parametrize("shape", labeling_config.SHAPES)
def test_f22_an_empty_mask_is_no_region(shape: str) -> None:
    assert results.encode(np.zeros((6, 8), bool), shape) is None


OWN_LABELS = '<{tag}Labels name="c" toName="i" smart="false"><Label value="Cat"/></{tag}Labels>'
SHARED_LABELS = (
    '<Labels name="l" toName="i"><Label value="Cat"/></Labels><{tag} name="c" toName="i" smart="false"/>'
)


@pytest.mark.parametrize("tags", [OWN_LABELS, SHARED_LABELS])
@pytest.mark.parametrize("tag", labeling_config.SHAPES.values())
def test_label_studio_accepts_every_region(tag: str, tags: str) -> None:
    xml = f'<View><Image name="i" value="$i"/>{tags.format(tag=tag)}</View>'
    (control,) = labeling_config.parse(xml).outputs
    # At the edge, where a rounded percentage might come out above 100.
    made = results.region(disc(70, 50, 12), control=control, labels=["Cat"], region_id="r" * 20, score=0.5)
    made = json.loads(json.dumps(made))
    assert len(made) == (1 if tags == OWN_LABELS else 2)
    prediction = {"result": made, "score": made[0]["score"], "model_version": "v1"}
    assert LabelInterface(xml).validate_prediction(prediction, return_errors=True) == []
    for result in made:
        assert (result["id"], result["origin"], result["score"]) == ("r" * 20, "prediction", 0.5)
        assert (result["original_width"], result["original_height"], result["image_rotation"]) == (80, 60, 0)
    assert made[-1]["value"][made[-1]["type"]] == ["Cat"]


@pytest.mark.parametrize("score", [0.5, 1.0000001, -1, float("nan"), float("inf"), np.float32(0.3)])
def test_f23_a_score_is_a_plain_number_from_0_to_1(score: float) -> None:
    control = labeling_config.parse(CONFIG).outputs[0]
    (made,) = results.region(disc(9, 9, 5), control=control, labels=["Cat"], region_id="r" * 20, score=score)
    assert type(made["score"]) is float
    assert 0 <= made["score"] <= 1


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
    value = {"rle": results.rle(disc(20, 30, 9)), "maskDataURL": results.png(disc(60, 30, 9))}
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
        ({"rle": 10**14}, "no list"),
        ({"rle": 1.5}, "no list"),
        ({"rle": "1,2,3"}, "no list"),
        ({"rle": {"0": 1}}, "no list"),
        ({"rle": [0, 0, 0, 192, 57.0]}, "no list"),
        ({"rle": [[0]] * 20}, "no list"),
        ({"rle": [True] * 20}, "no list"),
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
    runs = results.rle(np.random.default_rng(0).random((300, 400)) < 0.5)
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
    assert region_reading.decode(result, shape, budget) is not None
    assert work / 4 < UNITS - budget.units < 4 * work
    few = ReadingBudget(units=(UNITS - budget.units) / 2)
    with pytest.raises(TooMuch):
        region_reading.decode(result, shape, few)


SMALL: dict[str, tuple[dict[str, Any], float]] = {
    "polygon": ({"points": [[1, 1], [9, 1], [9, 9]]}, 150e3),
    "vector": ({"closed": True, "vertices": [{"x": 1, "y": 1}, {"x": 9, "y": 1}, {"x": 9, "y": 9}]}, 150e3),
    "rectangle": ({"x": 1, "y": 1, "width": 9, "height": 9}, 150e3),
    "ellipse": ({"x": 50, "y": 50, "radiusX": 9, "radiusY": 9}, 55e3),
    "brush": ({"rle": results.rle(disc(40, 30, 9))}, 150e3),
    "bitmask": ({"imageDataURL": results.png(disc(40, 30, 9))}, 100e3),
}


@pytest.mark.parametrize("kind", SMALL)
def test_f18_however_small_a_region_is_it_takes_its_time(kind: str) -> None:
    """A body of 10 MB holds 70 000 of them."""
    value, work = SMALL[kind]
    budget = ReadingBudget()
    assert region_reading.decode({"type": kind, "value": value}, (60, 80), budget) is not None
    assert work / 1.5 < UNITS - budget.units < 1.5 * work


def test_f18_a_png_of_16_bits_takes_twice_the_time() -> None:
    spent = []
    for bits in (8, 16):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 800, 600, bits, 6, 0, 0, 0))
        pixels = chunk(b"IDAT", zlib.compress((b"\0" + b"\xff" * (800 * bits // 2)) * 600))
        budget = ReadingBudget()
        value = {"maskDataURL": png_of(header, pixels, END)}
        assert region_reading.decode({"type": "brush", "value": value}, (600, 800), budget) is not None
        spent.append(UNITS - budget.units)
    assert spent[1] - spent[0] >= 20 * 800 * 600


@pytest.mark.parametrize("result", [zigzag(100), strokes(10), noise(), *(case for case, _, _ in WORK[5:])])
def test_after_the_deadline_nothing_is_read(result: dict[str, Any]) -> None:
    late = ReadingBudget(deadline=Deadline(0))
    with pytest.raises(OutOfTime):
        region_reading.decode(result, (300, 400), late)


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
    drawn = region_reading.read({"type": "brush", "value": {"rle": results.rle(mask)}}, (60, 80), budget)
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
        decoded = region_reading.decode(
            {"type": "brush", "value": {"rle": results.rle(mask)}}, (60, 80), budget
        )
        assert np.array_equal(decoded, mask)  # type: ignore[arg-type]
        assert (UNITS - budget.units < 200_000) == spent_before
    # In an image of another size they are another mask.
    other = region_reading.decode(
        {"type": "brush", "value": {"rle": results.rle(mask)}}, (80, 60), ReadingBudget(cache=kept)
    )
    assert np.array_equal(other, mask.reshape(80, 60))  # type: ignore[arg-type]


@given(masks.filter(lambda mask: bool(mask.any())), st.booleans())
def test_run_lengths_are_painted_in_their_window(mask: Mask, as_text: bool) -> None:
    stream = results.rle(mask)
    given = brush_rle.Text(memoryview(json.dumps(stream)[1:-1].encode())) if as_text else stream
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
    value = {"touches": touches, **({"rle": results.rle(mask)} if below else {})}
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


def test_ids_are_long_stable_and_one_per_control() -> None:
    one = results.prediction_id("image", "v1", "brush", "cat", 0)
    assert len(one) >= 16
    assert one == results.prediction_id("image", "v1", "brush", "cat", 0)
    others = {
        results.prediction_id(*key)
        for key in (
            ("image2", "v1", "brush", "cat", 0),
            ("image", "v2", "brush", "cat", 0),
            ("image", "v1", "poly", "cat", 0),
            ("image", "v1", "brush", "dog", 0),
            ("image", "v1", "brush", "cat", 1),
        )
    }
    assert len(others) == 5
    assert one not in others
    assert len({results.new_id() for _ in range(1000)}) == 1000
    assert len(results.new_id()) >= 16


def test_hashes_tell_masks_apart() -> None:
    mask = disc(40, 30, 9)
    assert results.mask_hash(mask) == results.mask_hash(mask.copy())
    assert results.mask_hash(mask) != results.mask_hash(~mask)
    assert results.mask_hash(np.zeros((2, 6), bool)) != results.mask_hash(np.zeros((3, 4), bool))


def test_the_config_of_these_tests_is_valid() -> None:
    assert [c.name for c in labeling_config.parse(CONFIG).outputs] == ["brush", "poly"]
