"""Bytes and geometry from outside, straight into what reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.labelstudio import labeling_config, region_meta, region_reading, results
from backend.runtime.embedding_files import EmbeddingFiles
from backend.telemetry.metrics import Metrics
from model import image_decoding
from model.segmentation.embedding import Embedding
from model.types import ImageError, Mask
from model.vlm import named_boxes, terms
from tests.support import hostile_inputs as strategies
from tests.support.hostile_inputs import HEIGHT, MANY, WIDTH
from tests.support.whole_server import counted, no_errors

KINDS = [shape + suffix for shape in labeling_config.SHAPES for suffix in ("", "labels")]
SHAPE = (HEIGHT, WIDTH)
GEOMETRY = st.fixed_dictionaries(
    {},
    optional={
        "rle": strategies.run_lengths() | strategies.junk,
        "maskDataURL": strategies.data_urls | strategies.junk,
        "imageDataURL": strategies.data_urls | strategies.junk,
        "points": strategies.rings | strategies.junk,
        "vertices": strategies.AIMED["vertices"] | strategies.junk,
        "closed": st.booleans() | strategies.junk,
        "touches": st.lists(
            st.fixed_dictionaries(
                {
                    "relativePoints": st.lists(strategies.numbers, max_size=8) | strategies.junk,
                    "relativeStrokeWidth": strategies.numbers,
                    "type": st.sampled_from(["add", "eraser"]) | strategies.junk,
                }
            )
            | strategies.junk,
            max_size=3,
        ),
        **dict.fromkeys(strategies.sides, strategies.numbers),
    },
)


@MANY
@given(kind=st.sampled_from(KINDS), value=GEOMETRY | strategies.junk)
def test_any_geometry_is_a_mask_or_none(kind: str, value: Any) -> None:
    counted("geometry")
    mask = region_reading.decode({"type": kind, "value": value}, SHAPE)
    assert mask is None or (mask.shape == SHAPE and mask.dtype == bool and mask.any())


@MANY
@given(mask=strategies.masks, shape=st.sampled_from(list(labeling_config.SHAPES)), compact=st.booleans())
def test_any_mask_is_geometry_or_none(mask: Mask, shape: str, compact: bool) -> None:
    counted("masks")
    value = results.encode(mask, shape, compact=compact)
    assert mask.any() or value is None
    again = None if value is None else region_reading.decode({"type": shape, "value": value}, SHAPE)
    if shape in ("brush", "bitmask") and mask.any():
        assert again is not None
        assert np.array_equal(again, mask)


@MANY
@given(meta=strategies.metas, mask=strategies.masks)
def test_any_evidence_is_whole_or_ignored(meta: Any, mask: Mask) -> None:
    counted("evidence")
    stored = region_meta.read(meta, SHAPE)
    if stored is not None:
        prompt = region_meta.consistent(stored, mask)
        assert np.isfinite(prompt.points).all()
        assert len(prompt.points) == len(prompt.labels) <= region_meta.MAX_POINTS


@MANY
@given(data=strategies.image_files)
def test_any_file_is_an_image_or_an_error(data: bytes) -> None:
    counted("image files")
    try:
        image = image_decoding.decode(data, max_pixels=10**6)
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3


@MANY
@given(answer=strategies.answers, kind=st.sampled_from(list(named_boxes.BOX_FORMATS)))
def test_any_answer_is_read_as_terms_and_boxes(answer: str, kind: str) -> None:
    counted("answer texts")
    assert all(len(term.text) <= terms.MAX_LENGTH for term in terms.parse(answer))
    for _, (x0, y0, x1, y1) in named_boxes.parse(answer, kind, SHAPE, SHAPE):
        assert 0 <= x0 < x1 <= WIDTH
        assert 0 <= y0 < y1 <= HEIGHT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def disk(folder: Path) -> EmbeddingFiles:
    return EmbeddingFiles(folder, 1e9, Metrics())


@MANY
@given(data=st.data())
def test_any_entry_on_the_disk_is_what_was_written_or_nothing(
    disk: EmbeddingFiles, folder: Path, data: st.DataObject
) -> None:
    counted("disk entries")
    kept = Embedding({"a": torch.arange(6.0), "b": torch.ones(1)}, (3, 2), (6, 4))
    disk.write("key", kept)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(data.draw(strategies.damaged(whole)))
    same = path.read_bytes() == whole
    with no_errors():
        found = disk.read("key")
    assert (found is not None) == same
