"""The training scripts: their fast paths equal the libraries' own, and a run can be stopped and resumed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything.modeling import image_encoder
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from model.builtin.scenes import NAMES, draw_scene
from model.segmentation.segmenter import Segmenter
from model.training import segmenter, vlm
from model.vlm.vlm import VLM


@pytest.fixture(autouse=True)
def own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts replace these for their process; here they are put back."""
    monkeypatch.setattr(qwen.Qwen2_5_VLRMSNorm, "forward", qwen.Qwen2_5_VLRMSNorm.forward)
    monkeypatch.setattr(image_encoder.Attention, "forward", image_encoder.Attention.forward)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 13), (5, 30)])
def test_the_fast_vision_tower_equals_the_librarys(height: int, width: int) -> None:
    torch.manual_seed(0)
    visual = vlm.build_model(vlm.build_tokenizer()).model.visual
    pixels = torch.randn(2 * height * width * 4, 3 * 2 * 14 * 14)
    grid = torch.tensor([[1, height * 2, width * 2]] * 2)
    with torch.inference_mode():
        theirs = visual(pixels, grid_thw=grid).pooler_output
        ours = vlm.see(visual, pixels, height, width).flatten(0, 1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_training_packs_images_as_the_processor_does() -> None:
    processor = vlm.build_processor()
    scenes = vlm.Scenes(processor.tokenizer, seed=0)
    scene = draw_scene(np.random.default_rng(0), width=12 * 28, height=10 * 28, count=2)
    theirs = processor.image_processor(images=[scene.image], return_tensors="pt")["pixel_values"]
    ours = scenes.patches(scene, 12 * 28, 10 * 28)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-2)


def test_a_batch_asks_for_the_names_from_left_to_right() -> None:
    tokenizer = vlm.build_tokenizer()
    batch = vlm.Scenes(tokenizer, seed=1).batch(4, small=True)
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        asked = tokenizer.decode(ids[labels != -100])
        names = asked.removesuffix("<|im_end|>").strip(" .").split(", ")
        assert set(names) <= {*NAMES, "nothing"}
    for sample, position, name in batch.rows.tolist():
        spelled = tokenizer.decode(batch.ids[sample, position : position + 2])
        assert NAMES[name] in spelled


@pytest.mark.parametrize("stage", ["patches", "answers"])
def test_the_vlm_trains_resumes_and_is_exported(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, folder = tmp_path / "run", tmp_path / "vlm"
    options = ["--work", str(work), "--stage", stage, "--small", "--batch", "2", "--every", "1"]
    for steps in ("1", "2"):
        run(vlm.main, [*options, "--steps", steps], monkeypatch)
    run(vlm.main, ["--work", str(work), "--export", str(folder)], monkeypatch)
    assert (work / "log.txt").read_text().count(stage) == 2
    assert VLM.load(str(folder), device="cpu")
    again = ["--work", str(tmp_path / "again"), "--start", str(folder), "--small", "--batch", "2"]
    run(vlm.main, [*again, "--steps", "1"], monkeypatch)


@pytest.mark.parametrize("stage", ["dense", "prompts"])
def test_the_segmenter_trains_resumes_and_is_exported(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, folder = tmp_path / "run", tmp_path / "segmenter"
    options = ["--work", str(work), "--stage", stage, "--images", "1", "--prompts", "2", "--every", "1"]
    for steps in ("1", "2"):
        run(segmenter.main, [*options, "--steps", steps], monkeypatch)
    run(segmenter.main, ["--work", str(work), "--export", str(folder)], monkeypatch)
    assert (work / "log.txt").read_text().count(stage) == 2
    assert Segmenter.load(str(folder), device="cpu")
    again = ["--work", str(tmp_path / "again"), "--start", str(folder), "--images", "1", "--rounds", "2"]
    run(segmenter.main, [*again, "--steps", "1"], monkeypatch)


def run(main: object, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    assert callable(main)
    main()
