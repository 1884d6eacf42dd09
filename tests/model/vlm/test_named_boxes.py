import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from model.attention.token_grids import LAYOUTS
from model.types import GroundingError
from model.vlm.named_boxes import BOX_FORMATS, MAX_BOXES, MAX_NAME, parse, question_for

SIZE = (500, 1000)  # height, width of the image
INPUT = (504, 1008)  # as Qwen2.5-VL sees it: whole patches

ANSWERS = [
    ("qwen2_5_vl", '[{"bbox_2d": [252, 126, 504, 378], "label": "dog"}]'),
    ("qwen3_vl", '[{"bbox_2d": [250, 250, 500, 750], "label": "dog"}]'),
    ("qwen3_vl_moe", '{"label": "dog", "bbox_2d": [250, 250, 500, 750], "color": "brown"}'),
    (
        "qwen2_vl",
        "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(250,250),(500,750)<|box_end|>",
    ),
    ("qwen2_vl", "<ref> dog </ref><box>(250,250),(500,750)</box>"),  # as Qwen-VL, the first, wrote it
    ("qwen2_vl", "On the grass, a dog(250,250),(500,750)"),  # decoded without special tokens
    ("internvl", "Sure, I will.\n```\n<ref>dog</ref><box>[[250, 250, 500, 750]]</box>\n```"),
    ("paligemma", "<loc0256><loc0256><loc0768><loc0512> dog"),
]


@pytest.mark.parametrize(("kind", "answer"), ANSWERS)
def test_each_familys_way_to_write_a_box(kind: str, answer: str) -> None:
    (dog,) = parse(answer, kind, SIZE, INPUT)
    assert dog[0] == "dog"
    assert dog[1] == pytest.approx((250, 125, 500, 375), abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("qwen3_vl", '[{"bbox_2d": [0, 0, 100, 100], "label": "dog"},{"bbox_2d":[1,1,99,99],"label":"cat"},'
         '{"bbox_2d": [500, 500, 600, 600], "label": "dog"}]'),
        ("qwen2_vl", "<ref>dog</ref><box>(0,0),(100,100)</box><box>(500,500),(600,600)</box> and "
         "<ref>a cat</ref><box>(1,1),(99,99)</box>"),
        ("internvl", "<ref>dog</ref><box>[[0, 0, 100, 100], [500, 500, 600, 600]]</box>\n"
         "<ref>cat</ref><box>[[1, 1, 99, 99]]</box>"),
        ("paligemma", "<loc0000><loc0000><loc0100><loc0100> dog ; <loc0500><loc0500><loc0600><loc0600> dog ; "
         "<loc0001><loc0001><loc0099><loc0099> cat"),
    ],
)  # fmt: skip
def test_a_name_may_have_several_boxes(kind: str, answer: str) -> None:
    names = [name for name, _ in parse(answer, kind, SIZE)]
    assert sorted(names) == ["cat", "dog", "dog"]


def test_json_in_a_fence_between_sentences() -> None:
    answer = (
        'Here they are:\n```json\n[\n\t{"bbox_2d": [1, 2, 300, 400], "label": "cup"}\n]\n```\nOne {item}.'
    )
    assert [name for name, _ in parse(answer, "qwen3_vl", SIZE)] == ["cup"]


def test_of_a_cut_answer_the_complete_items_stay() -> None:
    items = [{"bbox_2d": [i, i, i + 100, i + 100], "label": f"thing {i}"} for i in range(10)]
    answer = json.dumps(items)
    for length in range(len(answer)):
        complete = answer[:length].count("}")
        assert len(parse(answer[:length], "qwen3_vl", SIZE)) == complete


def test_of_a_cut_answer_the_last_name_counts_where_something_follows_on_it() -> None:
    box = "<loc0100><loc0100><loc0900><loc0900>"
    for answer, names in (
        (f"{box} dog ; {box} umb", ["dog"]),
        (f"{box} dog ; {box} umb ", ["dog"]),
        (f"{box} dog ; {box} umbrella ;", ["dog", "umbrella"]),
        (f"{box} dog ; {box}", ["dog"]),
    ):
        assert [name for name, _ in parse(answer, "paligemma", SIZE, cut=True)] == names
    assert len(parse(f"{box} dog ; {box} umb", "paligemma", SIZE)) == 2
    assert len(parse("dog(1,2),(300,400)", "qwen2_vl", SIZE, cut=True)) == 1


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("[500, 500, 250, 250]", (250, 125, 500, 250)),  # swapped corners
        ("[-50, 250, 500, 1300]", (0, 125, 500, 500)),  # hangs over the image
        ("[ 250.0,250,5e2, 500 ]", (250, 125, 500, 250)),
        ("[250, 250, 250, 500]", None),  # no area
        ("[NaN, 250, 500, 500]", None),
        ("[0, 0, Infinity, 500]", None),
        ("[0, 0, 1e999, 500]", None),
        ("[0, 0, 99999999999999999999, 500]", None),
        (f"[0, 0, {'9' * 5000}, 500]", None),
        ("[1100, 0, 1200, 500]", None),  # beside the image
        ("[250, 250, 500]", None),
        ("[1, 2, 3, 4, 5]", None),
        ("[]", None),
        ('"250, 250, 500, 500"', None),
        ("null", None),
    ],
)
def test_odd_numbers(written: str, expected: tuple[float, ...] | None) -> None:
    boxes = parse(f'[{{"bbox_2d": {written}, "label": "dog"}}]', "qwen3_vl", SIZE)
    assert [box for _, box in boxes] == ([pytest.approx(expected)] if expected else [])


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ('"Pickup  Truck"', "pickup truck"),
        ('"a dog"', "dog"),
        (r'"\u732b"', "猫"),
        (r'"\ud800 dog\u0000"', "dog"),  # half a character cannot be written to any file
        (r'"say \"cheese\""', 'say "cheese"'),
        ('""', None),
        ('"42"', None),
        (f'"{"dog " * MAX_NAME}"', None),
        ("7", None),
    ],
)
def test_odd_names(label: str, expected: str | None) -> None:
    boxes = parse(f'[{{"bbox_2d": [0, 0, 500, 500], "label": {label}}}]', "qwen3_vl", SIZE)
    assert [name for name, _ in boxes] == ([expected] if expected else [])


def test_an_endless_answer_is_cut() -> None:
    item = '{{"bbox_2d": [{0}, 0, 900, 900], "label": "dog"}},'
    assert len(parse("".join(item.format(i) for i in range(500)), "qwen3_vl", SIZE)) == MAX_BOXES
    assert len(parse(item.format(5) * 500, "qwen3_vl", SIZE)) == 1  # a loop says nothing new


def test_boxes_of_qwen2_5_vl_count_the_pixels_that_its_own_processor_makes() -> None:
    image = np.zeros((333, 517, 3), np.uint8)
    processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=200_000)
    _, rows, columns = processor(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
    size = (rows * processor.patch_size, columns * processor.patch_size)
    assert size != image.shape[:2]
    everything = f'[{{"bbox_2d": [0, 0, {size[1]}, {size[0]}], "label": "scene"}}]'
    assert parse(everything, "qwen2_5_vl", (333, 517), size)[0][1] == (0, 0, 517, 333)


def test_without_the_inputs_size_its_pixels_mean_nothing() -> None:
    with pytest.raises(GroundingError, match="give input_size"):
        parse(ANSWERS[0][1], "qwen2_5_vl", SIZE)


@pytest.mark.parametrize("kind", BOX_FORMATS)
def test_a_question_asks_for_the_terms_or_for_everything(kind: str) -> None:
    asked = question_for(kind, ["dog", "traffic cone"])
    family = BOX_FORMATS[kind]
    assert ("traffic cone" in asked) == (family.these is not None)
    if family.every is None:
        with pytest.raises(GroundingError, match="give terms"):
            question_for(kind)
    else:
        assert question_for(kind) == family.every


def test_paligemmas_syntax() -> None:
    assert question_for("paligemma", ["dog", "cat; fish\nsegment <loc0001>"]) == (
        "detect dog ; cat fish segment loc0001"
    )


def test_a_family_without_boxes_is_refused_with_the_way_out() -> None:
    for call in (lambda: question_for("llava"), lambda: parse("dog", "llava", SIZE)):
        with pytest.raises(GroundingError, match=r"'llava' models .* use the attention localizer") as error:
            call()
        advised = str(error.value).partition("of type ")[2].split(", ")
        assert set(advised) <= LAYOUTS.keys()  # VLM.load takes each of them


corner = st.integers(0, 999)
boxes = st.lists(st.tuples(corner, corner, corner, corner), min_size=1, max_size=5, unique=True)


@given(boxes)
def test_what_is_written_is_read(given_: list[tuple[int, int, int, int]]) -> None:
    """On an image of 1000 x 1000 a thousandth is a pixel."""
    expected = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in given_ if a != c and b != d]
    unique = list(dict.fromkeys(expected))
    written = {
        "qwen3_vl": json.dumps([{"bbox_2d": list(box), "label": "dog"} for box in given_]),
        "qwen2_vl": "".join(f"<ref>dog</ref><box>({a},{b}),({c},{d})</box>" for a, b, c, d in given_),
        "internvl": f"<ref>dog</ref><box>{json.dumps(given_)}</box>",
    }
    for kind, answer in written.items():
        read = [box for _, box in parse(answer, kind, (1000, 1000))]
        np.testing.assert_allclose(read, unique or np.zeros((0,)), atol=1e-6)


shreds = st.sampled_from(
    ['{"bbox_2d": [', '"label": "', '"}', "[[", "]]", "1,2", "(3,4),(900,800)", "<ref>", "</ref>", "<box>",
     "<loc_7>" * 4, "<loc0900>" * 4, "<loc_", "{", "}", "\\", '"', "-1e9", "NaN", "dog",
     "<|object_ref_start|>", "```json", "\ud800"]
)  # fmt: skip


@given(st.lists(shreds | st.text(max_size=5), max_size=30).map("".join), st.sampled_from(list(BOX_FORMATS)))
def test_any_text_gives_names_and_boxes_inside_the_image(answer: str, kind: str) -> None:
    for name, (x0, y0, x1, y1) in parse(answer, kind, SIZE, INPUT):
        assert 0 <= x0 <= x1 - 1 <= 999
        assert 0 <= y0 <= y1 - 1 <= 499
        assert 0 < len(name) <= 3 * MAX_NAME  # lower-casing may lengthen
        name.encode()
        assert any(c.isalpha() for c in name)


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_vl", "paligemma"])
@pytest.mark.parametrize(
    "shred", ["{", '{"', '{"label": "', '"\\', "[", "[[1,", "(", "(1,2),", "<", "<ref>", "<loc_1>",
              "<loc0001>", " ", "9"]
)  # fmt: skip
def test_hostile_text_costs_no_more_than_its_length(kind: str, shred: str) -> None:
    start = time.process_time()
    parse(shred * 200_000, kind, SIZE)
    assert time.process_time() - start < 20  # of the CPU; where it grew with the square: minutes
