"""Parse the boxes in a VLM's answer, for families that were trained to write them.

BOX_FORMATS holds per family the question, the notation, and the unit of the numbers. The text comes from a
model and is untrusted.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from model.types import Box, GroundingError

MAX_BOXES = 100
MAX_NAME = 60  # characters; longer texts are not names
MAX_ANSWER = 50_000  # characters of an answer that are read


NamedBox = tuple[str, Box]  # the VLM's name, in lower case as a term; inside the image, a pixel or more
_Match = tuple[int, int, list[float]]  # [start, end) of a name; x0, y0, x1, y1 as written


@dataclass(frozen=True)
class BoxFormat:
    """The questions for boxes that the models of one family answer, and the notation of their answers."""

    read: Callable[[str], Iterator[_Match]]
    full: float | None  # coordinate of the far edge; None: pixels of the model's input
    every: str | None = None  # question for all objects
    these: str | None = None  # question for {terms}; None: there is none
    joint: str = ", "  # between terms


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_OBJECT = re.compile(r"\{[^{}]*+\}")
_LABEL = re.compile(r'"label"\s*+:\s*+"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_BOXES = re.compile(r'"bbox(?:_2d)?"\s*+:\s*+(\[[^"]*+)')
_LIST = re.compile(r"\[[^\[\]]*+\]")
# (x0,y0),(x1,y1) or [x0, y0, x1, y1]
_CORNERS = re.compile(r"\([^()]{3,60}\), ?\([^()]{3,60}\)|\[[^\[\]]{7,120}\]")
_WORDS = re.compile(r"(?:<ref>|<\|object_ref_start\|>)([^<>]++)|<[^<>]*+>|([^<>,.;:\"\n]++)")
_LOCATED = re.compile(r"((?:<loc\d{4}>){4})([^<;]*+)")
_LEAD = re.compile(r"^[\s\-*'`]*(?:(?:and|an?|the)\s+)*", re.IGNORECASE)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(text)]


def _json(answer: str) -> Iterator[_Match]:
    """Yield the complete items of [{"bbox_2d": [x0, y0, x1, y1], "label": "dog"}, ...] in any text."""
    for item in _OBJECT.finditer(answer):
        label, boxes = _LABEL.search(item[0]), _BOXES.search(item[0])
        if label and boxes:
            start, end = (item.start() + i for i in label.span(1))
            yield from ((start, end, _numbers(box)) for box in _LIST.findall(boxes[1]))


def _named_first(answer: str) -> Iterator[_Match]:
    """Yield the items of <ref>dog</ref><box>(x0,y0),(x1,y1)</box>, a name before its boxes.

    If decoding has dropped the marks, which are special tokens, the words before a box are its name.
    """
    span, done = (0, 0), 0
    for box in _CORNERS.finditer(answer):
        for words in _WORDS.finditer(answer, done, box.start()):
            if words.lastindex and any(c.isalpha() for c in words[words.lastindex]):
                span = words.span(words.lastindex)
        yield *span, _numbers(box[0])
        done = box.end()


def _boxed_first(answer: str) -> Iterator[_Match]:
    """Yield the items of <loc0001><loc0002><loc0003><loc0004> dog ; ...: y0, x0, y1, x1, then the name."""
    for found in _LOCATED.finditer(answer):
        y0, x0, y1, x1 = _numbers(found[1])
        yield *found.span(2), [x0, y0, x1, y1]


_QWEN3 = BoxFormat(
    _json,
    full=1000,
    # QwenLM/Qwen3-VL, cookbooks/2d_grounding.ipynb, which has the second; its coordinates are relative.
    every="Locate every object in the image. Report bbox coordinates in JSON format.",
    these='Locate every instance that belongs to the following categories: "{terms}". '
    "Report bbox coordinates in JSON format.",
)
BOX_FORMATS = {
    # A developer's answer in issue 9 of QwenLM/Qwen3-VL, when that repository was Qwen2-VL's: boxes come
    # in a caption "with grounding", in thousandths.
    "qwen2_vl": BoxFormat(_named_first, full=1000, every="Generate the caption in English with grounding:"),
    # Qwen2.5-VL's cookbooks/spatial_understanding.ipynb: both questions, and that coordinates are pixels of
    # the image as resized for the model.
    "qwen2_5_vl": BoxFormat(
        _json,
        full=None,
        every="Output bbox coordinates and names of every item in this image in JSON format.",
        these="Outline the position of each {terms} and output all the coordinates in JSON format.",
    ),
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    # InternVL's documentation, "Chat Data Format": grounding and detection data, in thousandths.
    "internvl": BoxFormat(
        _named_first,
        full=1000,
        every="Please detect and label all objects in the following image and mark their positions.",
    ),
    # PaliGemma (arXiv 2407.07726): "detect a ; b", location tokens in 1024 bins, y before x. There is no
    # question for objects that are not named.
    "paligemma": BoxFormat(_boxed_first, full=1024, these="detect {terms}", joint=" ; "),
}


def question_for(kind: str, terms: Sequence[str] = ()) -> str:
    """Return the question for boxes of `terms`, or of all objects, to a model of type `kind`.

    `kind` is transformers' `model_type`. Some families have only a question for all objects: then `terms`
    are ignored. Raises GroundingError if the family has no boxes, or needs terms and there are none.
    """
    family = _family(kind)
    # Without marks, quotes and separators.
    plain = (" ".join(re.sub(r'[<>|;"\[\]{}]', " ", term).split())[:MAX_NAME] for term in terms)
    names = family.joint.join(filter(None, plain))
    if names and family.these:
        return family.these.format(terms=names)
    if family.every is None:
        raise GroundingError(f"{kind!r} models give boxes only of what they are asked for: give terms")
    return family.every


def parse(
    answer: str,
    kind: str,
    size: tuple[int, int],
    input_size: tuple[int, int] | None = None,
    *,
    cut: bool = False,
) -> list[NamedBox]:
    """Return the unique boxes in an answer, in order, at most MAX_BOXES, clipped to the image.

    Boxes without a name, thinner than a pixel, not finite, or more than an image side outside are dropped.
    If the answer is `cut`, its last box is dropped unless text follows the name. `kind` is transformers'
    `model_type`. `size` is the image's (height, width). `input_size` is that of the model's input, for
    families whose boxes are in its pixels. Raises GroundingError if the family has no boxes, or needs
    `input_size` and it is None.
    """
    family = _family(kind)
    if family.full is not None:
        full = (family.full, family.full)
    elif input_size is not None:
        full = (float(input_size[1]), float(input_size[0]))
    else:
        raise GroundingError(f"boxes of {kind!r} models count pixels of the resized input: give input_size")
    answer = answer[:MAX_ANSWER]
    boxes: dict[NamedBox, None] = {}
    for start, end, numbers in family.read(answer):
        name, box = _name(answer[start:end]), _in_pixels(numbers, full, size)
        if name and box and (not cut or answer[end:].strip()):
            boxes[name, box] = None
        if len(boxes) == MAX_BOXES:
            break
    return list(boxes)


def _family(kind: str) -> BoxFormat:
    if kind not in BOX_FORMATS:
        raise GroundingError(
            f"{kind!r} models are not known to answer with boxes: use the attention localizer, "
            f"or a model of type {', '.join(BOX_FORMATS)}"
        )
    return BOX_FORMATS[kind]


def _name(text: str) -> str:
    """Return a name in lower case without articles and list marks; "" if too long or without letters."""
    text = _LEAD.sub("", text).rstrip(" \t\r\n*'`")
    if len(text) > MAX_NAME:
        return ""
    if "\\" in text:
        try:
            text = json.loads(f'"{text}"', strict=False)
        except ValueError:
            return ""
    # Control characters (Cc) and lone surrogates (Cs) cannot be encoded downstream.
    text = " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text).split())
    return text.lower() if any(c.isalpha() for c in text) else ""


def _in_pixels(numbers: Sequence[float], full: tuple[float, float], size: tuple[int, int]) -> Box | None:
    """Scale x0, y0, x1, y1 from a space of `full` (x, y) to an image of `size` (h, w). None if invalid."""
    if len(numbers) != 4:
        return None
    shares = [number / whole for number, whole in zip(numbers, (*full, *full), strict=True)]
    if not all(-1 <= share <= 2 for share in shares):  # NaN compares false, too
        return None
    height, width = size
    x0, x1 = sorted(min(max(share, 0.0), 1.0) * width for share in shares[0::2])
    y0, y1 = sorted(min(max(share, 0.0), 1.0) * height for share in shares[1::2])
    return (x0, y0, x1, y1) if x1 - x0 >= 1 and y1 - y0 >= 1 else None
