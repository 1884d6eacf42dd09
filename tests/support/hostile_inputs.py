"""Strategies for fuzzing: bodies, configs, files and models' answers, most of them almost valid."""

import base64
import copy
import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as Pillow

from backend.answers.placement import Labelling, Place, annotation, describe
from backend.labelstudio import brush_rle, labeling_config, region_reading, results
from model.builtin.scenes import draw_scene
from model.types import Mask
from tests.support.detections import detection, disc
from tests.support.images import data_url, image_url
from tests.support.paths import CAPTURES

MANY = settings(max_examples=3 * settings().max_examples)
WIDTH, HEIGHT = 80, 60
EVERY_CONTROL = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Dog" alias="pup"/></BrushLabels>
  <BitmaskLabels name="bitmask" toName="image" smart="false"><Label value="Cat"/></BitmaskLabels>
  <PolygonLabels name="poly" toName="image"><Label value="Cat"/><Label value="Dog"/></PolygonLabels>
  <VectorLabels name="vector" toName="image"><Label value="Cat"/></VectorLabels>
  <EllipseLabels name="ellipse" toName="image"><Label value="Cat"/></EllipseLabels>
  <RectangleLabels name="box" toName="image" value="$kinds"><Label value="Cat"/></RectangleLabels>
  <KeyPointLabels name="dot" toName="image" smart="false"><Label value="Cat"/></KeyPointLabels>
  <KeyPointLabels name="kp" toName="image"><Label value="Cat"/><Label value="Dog"/></KeyPointLabels>
  <RectangleLabels name="rect" toName="image" smart="true"><Label value="Cat"/></RectangleLabels>
  <Taxonomy name="what" toName="image" perRegion="true"><Choice value="Cat"/></Taxonomy>
  <TextArea name="note" toName="image" perRegion="true"/>
  <TextArea name="vlsam_prompt" toName="image"/>
  <TextArea name="vlsam_status" toName="image"/>
</View>
"""

# Small things of any kind

texts = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(codec=None), max_size=5),  # lone surrogates too
    st.sampled_from(
        [
            "", " ", "\0", "\ud800", "é" * 2, "nan", "1e999", "../../etc/passwd", "<b>", "a\r\nb: c",
            "${jndi:x}", "x" * 10_000, "9" * 5000, "#", "#1", "\u202e", "%s", "{0}", "__class__",
        ]
    ),
)  # fmt: skip
numbers = st.one_of(
    st.integers(-5, 105),
    st.floats(),  # NaN and infinity, which Python writes as JSON and reads
    st.sampled_from([0, -0.0, 50, 99.999, 100, 1e-320, 1e6, 1e308, -1e308, 2**31, 2**63, 2**64, -(2**63)]),
    st.sampled_from([10**400, 10**4000]),  # no float holds them
)
DEEP = "\0deep\0"  # becomes many brackets in each other: see `written`
junk = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    texts,
    st.just(DEEP),
    st.recursive(
        st.none() | st.booleans() | numbers | texts,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=8,
    ),
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Change, remove or insert some bytes."""
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.sampled_from([0, 0, 1, 4, len(data)]))
        data = data[:at] + draw(st.binary(max_size=8)) + data[at + cut :]
    return data


# Masks and their encodings

masks = st.one_of(
    arrays.arrays(bool, st.just((HEIGHT, WIDTH)), elements=st.booleans(), fill=st.booleans()),
    st.sampled_from([np.zeros((HEIGHT, WIDTH), bool), np.ones((HEIGHT, WIDTH), bool)]),
    st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).random((HEIGHT, WIDTH)) < seed / 100),
    st.tuples(st.integers(0, WIDTH), st.integers(0, HEIGHT), st.integers(0, 40)).map(lambda d: disc(*d)),
)


def _png_of(mask: Mask) -> bytes:
    return base64.b64decode(results.png(mask).partition(",")[2])


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


ZEROS = zlib.compress(bytes(10**6))  # a thousand times smaller
EXTRA_CHUNKS = [
    _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 3, 0, 0, 0)) for side in (1, 30_000, 2**31 - 1)
] + [
    _chunk(b"zTXt", b"a\0\0" + ZEROS),
    _chunk(b"iTXt", b"a\0\1\0\0\0" + ZEROS) * 100,
    _chunk(b"iCCP", b"a\0\0" + ZEROS),
    _chunk(b"IDAT", ZEROS),
    _chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
    _chunk(b"eXIf", b"II*\0" + bytes(20)),
    struct.pack(">I", 2**32 - 1) + b"IDAT",
]


@st.composite
def odd_pngs(draw: st.DrawFn) -> bytes:
    """Draw a PNG with valid checksums whose header and pixels may disagree."""
    side = st.sampled_from([0, 1, WIDTH, HEIGHT, 2**31 - 1])
    kind = st.sampled_from([0, 2, 3, 4, 6, 7])
    head = struct.pack(
        ">IIBBBBB", draw(side), draw(side), draw(st.sampled_from([1, 2, 8, 16, 3])), draw(kind), 0, 0, 0
    )
    pixels = zlib.compress(draw(st.binary(max_size=200)))
    palette = _chunk(b"PLTE", draw(st.binary(max_size=6))) + _chunk(b"tRNS", draw(st.binary(max_size=3)))
    more = draw(st.lists(st.sampled_from(EXTRA_CHUNKS), max_size=3))
    parts = [_chunk(b"IHDR", head), palette, *more, _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")]
    if not draw(st.integers(0, 4)):
        parts = draw(st.permutations(parts))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


pngs = masks.map(_png_of).flatmap(damaged) | odd_pngs()
data_urls = st.one_of(
    pngs.map(lambda data: region_reading.PNG + base64.b64encode(data).decode()),
    texts.map(lambda text: region_reading.PNG + text),
    texts,
)


@st.composite
def run_lengths(draw: st.DrawFn) -> list[Any]:
    """Draw Label Studio's RLE: of a mask and damaged, or noise with a valid header."""
    if draw(st.booleans()):
        data = bytes(results.encode(disc(40, 30, 12), "brush")["rle"])  # type: ignore[index]
        data = draw(damaged(data))
    else:
        size = draw(st.sampled_from([4 * HEIGHT * WIDTH, 0, 2**32 - 1, 4 * 800 * 600]))
        data = size.to_bytes(4, "big") + draw(st.binary(max_size=60))
    found: list[Any] = list(data)
    if not draw(st.integers(0, 9)):  # long enough to stay text until somebody reads it
        found += [draw(st.integers(0, 255))] * draw(st.sampled_from([300, 100_000]))
    if draw(st.booleans()) and found:
        found[draw(st.integers(0, len(found) - 1))] = draw(numbers | junk)
    return found


def _zigzag(points: int) -> list[list[float]]:
    return [[n * 100 / points, 100 * (n % 2)] for n in range(points)]


rings = st.lists(st.lists(numbers | junk, min_size=1, max_size=3), max_size=12) | st.sampled_from(
    [
        _zigzag(10_000),
        _zigzag(10_001),
        [[1e6, -1e6]] * 10_000,
        [[50, 50]] * 3,
        [[-1e6, -1e6], [1e6, -1e6], [0, 1e6]],
    ]
)
touches = st.one_of(
    st.lists(junk, max_size=2),
    st.builds(
        lambda kind, points, width, count: (
            [{"type": kind, "relativePoints": points, "relativeStrokeWidth": width}]
            * min(count, 200_000 // (1 + len(points)))
        ),
        st.sampled_from(["add", "eraser"]) | junk,
        st.lists(st.floats(-50, 150), max_size=8)
        | st.just([0, 0, 100, 100] * 2500)
        | st.lists(numbers | junk, max_size=4),
        numbers,
        st.sampled_from([1, 3, 1000, 5000, 20_000]),
    ),
)
sides = ["x", "y", "width", "height", "rotation", "radiusX", "radiusY", "relativeStrokeWidth"]
evidences = st.fixed_dictionaries(
    {
        "v": st.just(1) | junk,
        "term": texts,
        "points": st.lists(
            st.tuples(numbers, numbers, st.sampled_from([0, 1, True, 2, "1"])).map(list), max_size=70
        )
        | junk,
        "box": st.none() | st.lists(numbers, min_size=4, max_size=4) | junk,
        "scores": st.dictionaries(texts, numbers, max_size=3) | junk,
        "model": texts,
        "mask": texts,
    }
)
metas = (
    st.fixed_dictionaries({"vlsam": evidences | junk, "text": texts | st.lists(texts, max_size=3) | junk})
    | junk
)

# Labeling configs

tags = st.sampled_from(
    [
        "View", "Image", "Labels", "Label", "Choice", "Taxonomy", "TextArea", "Choices", "Number", "Text",
        "Repeater",
        *(shape + kind for shape in labeling_config.SHAPES.values() for kind in ("", "Labels")),
        "brushlabels", "x:y",
    ]
)  # fmt: skip
attributes = st.dictionaries(
    st.sampled_from(
        [
            "name",
            "toName",
            "value",
            "valueList",
            "alias",
            "smart",
            "smartOnly",
            "perRegion",
            "predicted_values",
            "xmlns",
            "é",
        ]
    ),
    st.sampled_from(
        [
            "image",
            "$image",
            "$kinds[0].value",
            "$kinds",
            "true",
            "false",
            "Cat",
            "a,b",
            "",
            "vlsam_prompt",
            "$ $",
            "&#0;",
        ]
    )
    | st.text(max_size=8),
    max_size=5,
)


def _element(parts: tuple[str, dict[str, str], list[str]]) -> str:
    tag, given, children = parts
    said = "".join(f' {name}="{value.replace("<", "&lt;")}"' for name, value in given.items())
    return f"<{tag}{said}>{''.join(children)}</{tag}>"


elements = st.recursive(
    st.tuples(tags, attributes, st.just([])).map(_element),
    lambda inner: st.tuples(tags, attributes, st.lists(inner, max_size=5)).map(_element),
    max_leaves=12,
)


def _nested(tag: str, depth: int) -> str:
    inner = f'<{tag} value="a">' * depth + f"</{tag}>" * depth
    return EVERY_CONTROL.replace('<Choice value="Cat"/>', inner)


BOMB = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "ha"}">' for n in range(10))
configs = st.one_of(
    elements,
    elements.map(lambda inner: EVERY_CONTROL.replace("</View>", inner + "</View>")),
    st.just(EVERY_CONTROL.encode()).flatmap(damaged).map(lambda data: data.decode("utf-8", "replace")),
    texts,
    st.sampled_from(
        [
            f"<!DOCTYPE View [{BOMB}]><View>&e9;</View>",
            '<!DOCTYPE View [<!ENTITY x SYSTEM "file:///etc/passwd">]><View>&x;</View>',
            '<?xml version="1.0" encoding="utf-7"?>' + EVERY_CONTROL.strip(),
            EVERY_CONTROL.replace('value="Cat"', 'value="Cat&#xD800;"'),
            EVERY_CONTROL.replace("$image", "$kinds[0]"),
            EVERY_CONTROL.replace("<BrushLabels", '<BrushLabels choice="multiple"'),
            _nested("Choice", 3000),
            _nested("View", 3000),
            EVERY_CONTROL.replace(
                '<Choice value="Cat"/>', "".join(f'<Choice value="c{n}"/>' for n in range(5000))
            ),
            EVERY_CONTROL.replace(
                '<Label value="Cat"/>', "".join(f'<Label value="c{n}"/>' for n in range(1000))
            ),
            EVERY_CONTROL + " " * labeling_config.MAX_CONFIG,
        ]
    ),
)

# Whole bodies


def _regions() -> list[dict[str, Any]]:
    """Return the regions of two objects in every kind of control."""
    config = labeling_config.parse(EVERY_CONTROL).of({"kinds": ["Cat", "Dog"]})
    found = [detection("cat", disc(20, 30, 12)), detection("dog", disc(60, 30, 9))]
    made, _ = annotation(found, Labelling(config), "image", "v1")
    brush = config.outputs[0]
    return made + describe(found[0], Place(brush, ("Cat",), "clicked"), compact=True)


def _rich_body() -> dict[str, Any]:
    """Return a click in a task with all fields that a task can have."""
    regions = _regions()
    strokes = [{"type": "add", "relativePoints": [10, 20, 60, 70.5], "relativeStrokeWidth": 4}]
    drawn = {**regions[0], "id": "drawn", "value": {**regions[0]["value"], "touches": strokes}}
    relation = {"type": "relation", "from_id": regions[0]["id"], "to_id": "drawn", "direction": "right"}
    wishes = [
        {"id": "w1", "type": "choices", "from_name": "vlsam_level", "value": {"choices": ["part"]}},
        {"id": "w2", "type": "number", "from_name": "vlsam_score", "value": {"number": 0.1}},
    ]
    clicks = [
        {
            "id": f"p{number}", "type": "keypointlabels", "from_name": "kp", "to_name": "image",
            "is_positive": number != 1, "original_width": WIDTH, "original_height": HEIGHT,
            "value": {"x": x, "y": y, "width": 0.2, "keypointlabels": ["Cat"]},
        }
        for number, (x, y) in enumerate([(25, 50), (70, 20), (30.5, 45)])
    ]  # fmt: skip
    box = {
        "id": "b", "type": "rectanglelabels", "from_name": "rect", "to_name": "image",
        "value": {"x": 10, "y": 10, "width": 60, "height": 70, "rotation": 10, "rectanglelabels": ["Cat"]},
    }  # fmt: skip
    entry = {"updated_at": "2026-01-01T00:00:00Z", "was_cancelled": False}
    task = {
        "id": 1,
        "data": {"kinds": ["Cat", {"value": "Dog", "alias": "pup"}, "Cup"]},
        "drafts": [
            {"id": 1, "annotation": 2, "result": [drawn, relation, *wishes, *clicks[:1], box], **entry}
        ],
        "annotations": [{"id": 2, "result": [*regions, relation], **entry}],
        "predictions": [{"id": 3, "result": regions, "score": 0.5, **entry}],
    }
    context = {"result": clicks}
    return {"tasks": [task], "label_config": EVERY_CONTROL, "project": "1.1", "params": {"context": context}}


def _scene(width: int, height: int) -> str:
    scene = draw_scene(np.random.default_rng(3), width=width, height=height, count=2)
    return image_url(scene.image)


SMALL, LARGE = _scene(WIDTH, HEIGHT), _scene(800, 600)


def _seeds() -> Iterator[dict[str, Any]]:
    """Yield the recorded bodies and the rich one, on images that need no network, also as batches."""
    recorded = [json.loads(file.read_text("utf-8")) for file in sorted(CAPTURES.glob("*.json"))]
    bodies = [each for capture in recorded for each in (capture if isinstance(capture, list) else [capture])]
    bodies = [each.get("json", each) for each in bodies]
    for body in [_rich_body(), *(body for body in bodies if "tasks" in body)]:
        for task in body["tasks"]:
            (key,) = set(task["data"]) - {"kinds"} or {"image"}
            # A recorded mask is of 800 x 600; all else is percent, and a small image is quick.
            large = any(each["result"] for each in task["predictions"] if "model_version" in each)
            task["data"][key] = LARGE if large else SMALL
        yield body
        again = [*body["tasks"], {**body["tasks"][0], "data": {"image": data_url()}}]
        yield {**body, "tasks": again, "params": {"context": None}}


SEEDS = list(_seeds())
PHRASES = [{"type": "textarea", "from_name": "vlsam_prompt", "value": {"text": ["the red dog on the left"]}}]
AIMED: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(sides, numbers),
    "id": texts | junk,
    "meta": metas,
    "vlsam": evidences,
    "rle": run_lengths()
    | st.sampled_from([10**14, -1, 1.5, "1,2,3", {"0": 1}, [[0] * 9] * 9, [-1] * 300, [256] * 300]),
    **dict.fromkeys(
        ["brushlabels", "keypointlabels", "polygonlabels", "rectanglelabels", "labels"],
        st.lists(st.sampled_from(["Cat", "Dog", "Unicorn"]) | texts | junk, max_size=4) | junk,
    ),
    "from_name": st.sampled_from(["brush", "kp", "rect", "point", "image", "vlsam_prompt"]) | texts | junk,
    "to_name": st.sampled_from(["image", "other", ["image"], "brush"]) | texts | junk,
    "data": st.dictionaries(
        st.sampled_from(["image", "images", "photo", "kinds"]),
        st.just(SMALL) | st.lists(st.just(SMALL), max_size=3) | junk,
    ),
    "maskDataURL": data_urls,
    "imageDataURL": data_urls,
    "image": st.sampled_from(
        ["data:,", "/data/upload/1/a.png", "s3://a/b", "http://[::1", "file:///etc/passwd", "http://x/%s"]
    )
    | pngs.map(lambda data: "data:image/png;base64," + base64.b64encode(data).decode())
    # Not one address: what a task with several images holds, or one that wraps it.
    | st.lists(st.just(SMALL) | texts | junk, max_size=4)
    | st.fixed_dictionaries({"url": st.just(SMALL) | texts, "rest": junk})
    | st.lists(st.fixed_dictionaries({"url": st.just(SMALL)}), max_size=3),
    "points": rings,
    "vertices": st.lists(st.fixed_dictionaries({"x": numbers, "y": numbers}), max_size=9),
    "relativePoints": st.lists(numbers, max_size=9),
    "touches": touches,
    "label_config": configs,
    "text": st.lists(texts, max_size=3),
    "kinds": st.lists(texts | st.dictionaries(st.sampled_from(["value", "alias"]), texts), max_size=5),
    "params": st.just({"context": {"result": PHRASES}}) | junk,
    "event": st.sampled_from(["capabilities", "release"]) | junk,
    "project": texts | junk,
}


class _Key(str):
    """A name that does not keep another of the same letters out of its dict: JSON may say things twice."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _places(node: Any, name: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Yield every (container, key, nearest name above); of long lists only the first few items."""
    inner = list(node.items()) if isinstance(node, dict) else list(enumerate(node))[:6]
    for key, value in inner:
        nearest = str(key) if isinstance(node, dict) else name
        yield node, key, nearest
        if isinstance(value, dict | list):
            yield from _places(value, nearest)


@st.composite
def mutated(draw: st.DrawFn, seed: Any) -> Any:
    """Draw a copy in which a few values are replaced, removed, repeated or duplicated."""
    body = copy.deepcopy(seed)
    for _ in range(draw(st.integers(1, 5))):
        places = list(_places(body))
        if not places:
            break
        # Half of the time where it matters most, for most places are mere bookkeeping.
        aimed = draw(st.booleans()) and [place for place in places if place[2] in AIMED]
        where, key, name = draw(st.sampled_from(aimed or places))
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat", "twice", "wrap"])):
            case "replace":
                where[key] = copy.deepcopy(draw(AIMED.get(name, junk) | junk))  # to be mutated itself
            case "remove":
                del where[key]
            case "repeat" if isinstance(where, list):
                times = draw(st.sampled_from([2, 30, 10_000]))
                where[key:key] = [where[key]] * min(times, 3_000_000 // (1 + len(str(where[key]))))
            case "twice" if isinstance(where, dict):
                where[_Key(key)] = copy.deepcopy(draw(AIMED.get(name, junk)))
            case _:
                where[key] = [where[key]]
    return body


def written(body: Any, depth: int = 1) -> bytes:
    """Return a body as JSON bytes, in which DEEP becomes `depth` nested lists."""
    text = json.dumps(body, separators=(",", ":"))
    return text.replace(json.dumps(DEEP), "[" * depth + "]" * depth).encode()


DEAR: list[tuple[str, str, dict[str, Any]]] = [
    ("brush", "brushlabels", {"rle": [*(4 * HEIGHT * WIDTH).to_bytes(4), 0x38, *[0] * 20_000]}),
    ("brush", "brushlabels", {"rle": [*(4 * HEIGHT * WIDTH).to_bytes(4), 0x39, 0xBB, 0xEF, *[0x24] * 9000]}),
    ("brush", "brushlabels", {"rle": brush_rle.encode(np.indices((HEIGHT, WIDTH)).sum(axis=0) % 2 == 1)}),
    (
        "brush",
        "brushlabels",
        {"touches": [{"relativePoints": [0, 0, 100, 100], "relativeStrokeWidth": 90}] * 2000},
    ),
    ("brush", "brushlabels", {"maskDataURL": results.png(np.ones((HEIGHT, WIDTH), bool))}),
    ("bitmask", "bitmasklabels", {"imageDataURL": results.png(np.ones((HEIGHT, WIDTH), bool))}),
    ("poly", "polygonlabels", {"points": _zigzag(10_000)}),
    ("vector", "vectorlabels", {"closed": True, "vertices": [{"x": x, "y": y} for x, y in _zigzag(5000)]}),
    ("ellipse", "ellipselabels", {"x": 50, "y": 50, "radiusX": 1e6, "radiusY": 1e6, "rotation": 45}),
    ("box", "rectanglelabels", {"x": -1e6, "y": -1e6, "width": 1e6, "height": 1e6, "rotation": 1}),
]


@st.composite
def crowded(draw: st.DrawFn) -> Any:
    """Draw a click or a batch in a task with up to hundreds of regions that are expensive to read."""
    body = _rich_body()
    (task,) = body["tasks"]
    task["data"]["image"] = SMALL
    for place in draw(
        st.lists(st.sampled_from(["drafts", "annotations", "predictions"]), min_size=1, max_size=2)
    ):
        made = []
        for name, kind, value in draw(st.lists(st.sampled_from(DEAR), min_size=1, max_size=3)):
            count = draw(st.sampled_from([1, 5, 200 if len(str(value)) < 1000 else 10]))
            labelled = {**value, kind: draw(st.sampled_from([["Cat"], ["Dog"], ["Cat", "Dog"], []]))}
            made += [
                {"id": f"{name}{n}", "type": kind, "from_name": name, "to_name": "image", "value": labelled}
                for n in range(count)
            ]
        task[place] = [{"id": 5, "result": made, "updated_at": "2027-01-01T00:00:00Z"}]
    if draw(st.booleans()):
        body["params"] = {"context": None}
    return body


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Draw a /predict body, sometimes not quite JSON."""
    if not draw(st.integers(0, 14)):
        return written(draw(crowded()))
    body = draw(st.sampled_from(SEEDS).flatmap(mutated))
    data = written(body, draw(st.sampled_from([10, 100_000]) | st.integers(800, 1000)))
    if draw(st.integers(0, 19)):
        return data
    return draw(st.one_of(damaged(data), st.just(data.decode().encode("utf-16"))))


# What models say

_marks = st.sampled_from(
    [
        "dog", "cat", "a cat on a mat", ", ", ". ", "\n", "- ", "1. ", "**", "<ref>", "</ref>", "<box>",
        "(1,2),(3,4)", "<|object_ref_start|>", "<loc0001>", "<loc_999>",
        '{"bbox_2d": [1, 2, 3, 4], "label": "dog"}',
        '"', "[", "{", "no ", "is ", "\u200d", "狗和猫", "개와 고양이", "\ud83d", "None", ":",
        "<script>", "\\u0000",
    ]
)  # fmt: skip
answers = st.lists(_marks | texts, max_size=12).map("".join)
attentions = st.one_of(
    arrays.arrays(np.float32, (5, 7), elements=st.floats(0, 1, width=32)),
    arrays.arrays(np.float32, (5, 7), elements=st.floats(width=32), fill=st.just(np.nan)),
    st.sampled_from(
        [np.zeros((5, 7), np.float32), np.ones((1, 1), np.float32), np.full((5, 7), 1e38, np.float32)]
    ),
)
terms = st.sampled_from(["cat", "dogs", "", "Kind\0", "\ud800", "x" * 300]) | texts
scores = st.floats() | st.floats(0, 1)
detections = st.builds(lambda term, mask, score: detection(term, mask, score=score), terms, masks, scores)

# Files

IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


def _image_file(kind: str) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(np.arange(30 * 20 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(file, kind)
    return file.getvalue()


image_files = st.sampled_from([_image_file(kind) for kind in IMAGE_FORMATS]).flatmap(damaged)
