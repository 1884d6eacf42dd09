from pathlib import Path

import numpy as np
import pytest

from model.builtin.scenes import Scene
from model.terms import parse
from model.types import AttentionError, ModelLoadError
from model.vlm import VLM, looks_local

QUESTION = "List all objects in the image."


def test_the_rows_of_a_term_are_the_tokens_that_spell_it(vlm: VLM, scene: Scene) -> None:
    answer = vlm.answer(scene.image, QUESTION)
    tokenizer = vlm._processor.tokenizer
    said = tokenizer(answer.text, add_special_tokens=False)["input_ids"]
    for term in parse(answer.text):
        rows = answer.rows(term.start, term.end)
        spelled = tokenizer.decode([said[row - answer.first] for row in rows])
        assert spelled.strip().lower() == term.text


def test_characters_beyond_the_answer_have_no_rows(vlm: VLM, scene: Scene) -> None:
    with pytest.raises(AttentionError, match="no token spells"):
        vlm.answer(scene.image, QUESTION).rows(500, 510)


def test_there_is_one_map_per_span_on_the_token_grid(vlm: VLM, scene: Scene) -> None:
    answer = vlm.answer(scene.image, QUESTION)
    spans = [(term.start, term.end) for term in parse(answer.text)]
    own = vlm.attention_maps(answer, spans)
    asking = vlm.attention_maps(answer, spans, row="asking")
    assert own.shape == asking.shape == (len(spans), answer.grid.rows, answer.grid.columns)
    assert own.dtype == np.float32
    assert (own >= 0).all()
    assert not np.allclose(own, asking)
    assert vlm.attention_maps(answer, []).shape == (0, answer.grid.rows, answer.grid.columns)


@pytest.mark.parametrize("size", [(336, 336), (560, 168), (168, 560)])
def test_a_token_of_the_grid_sees_its_rectangle_of_the_image(vlm: VLM, size: tuple[int, int]) -> None:
    """Painting one rectangle changes the pixels of its own token, and of no other."""
    width, height = size
    blank = np.full((height, width, 3), 120, np.uint8)
    grid = vlm.answer(blank, QUESTION).grid
    row, column = grid.rows - 2, 1
    painted = blank.copy()
    x0, x1 = (round((column + share) * width / grid.columns) for share in (0.35, 0.65))
    y0, y1 = (round((row + share) * height / grid.rows) for share in (0.35, 0.65))
    painted[y0:y1, x0:x1] = 255
    before, after = (
        vlm._processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        for image in (blank, painted)
    )
    changed = (before - after).abs().amax(1).reshape(-1, 4).amax(1) > 0.2
    assert changed.nonzero().flatten().tolist() == [row * grid.columns + column]
    assert len(grid.tokens) == grid.rows * grid.columns
    assert (np.diff(grid.tokens) == 1).all()


@pytest.mark.parametrize(
    ("name", "local"),
    [("Qwen/Qwen2.5-VL-3B-Instruct", False), ("./vlm", True), ("/models/vlm", True), ("model", True)],
)
def test_folders_and_hub_ids_are_told_apart(name: str, local: bool) -> None:
    assert looks_local(name) is local


def test_a_corrupt_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(ModelLoadError, match="cannot be loaded") as error:
        VLM.load(str(tmp_path), device="cpu")
    assert "\n" not in str(error.value)
