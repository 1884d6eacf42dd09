import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from model.builtin.scenes import Scene
from model.profiles import DEVICE_MAPS, FOLDER, Dtype, Quantization, choose
from model.recipes import RECIPES
from model.segmentation.segmenter import Segmenter
from model.types import ModelLoadError
from model.vlm.quantization import Precision
from model.vlm.vlm import VLM
from model.weights.sam_checkpoints import CHECKPOINTS
from tests.support import vlm_families
from tests.support.loopback import running, stand_in_for_hub

BUILTIN = Path(choose().vlm)
QUESTION = "List all objects in the image."


def kinds(vlm: VLM, part: str) -> set[str]:
    """The classes of linear layers under a name."""
    modules = vlm.model.named_modules()
    return {type(m).__name__ for name, m in modules if part in name and isinstance(m, torch.nn.Linear)}


def first_map(vlm: VLM, scene: Scene) -> NDArray[np.float32]:
    answer = vlm.answer(scene.image, QUESTION)
    return np.ravel(vlm.attention_maps(answer, [(0, answer.ends[0])], RECIPES["paper"])[0])


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "layer"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_a_quantised_decoder_looks_where_the_full_one_does(
    vlm: VLM, scene: Scene, quantization: Quantization, layer: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        small = VLM.load(str(BUILTIN), device="cpu", precision=Precision(quantization=quantization))
    assert f"in {quantization}" in caplog.text
    assert kinds(small, "language_model.layers") == {layer}
    assert kinds(small, "visual") == {"Linear"}
    assert kinds(small, "lm_head") == {"Linear"}
    maps = first_map(small, scene), first_map(vlm, scene)
    assert np.corrcoef(*maps)[0, 1] > 0.99
    assert not np.array_equal(*maps)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["smolvlm", "gemma3"])
def test_decoders_of_other_names_are_found(family: str, tmp_path: Path) -> None:
    vlm = VLM.load(
        vlm_families.saved(family, tmp_path), device="cpu", precision=Precision(quantization="8bit")
    )
    assert "Linear8bitLt" in kinds(vlm, "layers")
    assert kinds(vlm, "vision") == {"Linear"}


def test_a_model_with_nothing_to_quantise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(**kwargs: Any) -> Any:
        return BitsAndBytesConfig(**{**kwargs, "llm_int8_skip_modules": [".*"]})

    monkeypatch.setattr("model.vlm.quantization.BitsAndBytesConfig", nothing)
    with pytest.raises(ModelLoadError, match="no layer that 8bit applies to"):
        VLM.load(str(BUILTIN), device="cpu", precision=Precision(quantization="8bit"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_numbers_are_of_the_wanted_kind(dtype: Dtype, kind: torch.dtype, scene: Scene) -> None:
    vlm = VLM.load(str(BUILTIN), device="cpu", precision=Precision(dtype=dtype))
    assert {p.dtype for p in vlm.model.parameters()} == {kind}
    found = first_map(vlm, scene)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["auto", "balanced"])
def test_a_device_map_spreads_the_vlm_and_leaves_the_segmenter_whole(device: str, scene: Scene) -> None:
    assert device in DEVICE_MAPS
    vlm = VLM.load(str(BUILTIN), device=device)
    assert first_map(vlm, scene).max() > 0
    assert Segmenter.load(choose().sam, device=device).encode(scene.image).size == scene.image.shape[:2]


def test_a_device_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(ModelLoadError, match="cannot be loaded") as error:
        VLM.load(str(BUILTIN), device="gpu")
    assert "\n" not in str(error.value)


def test_f24_attention_that_cannot_be_read_fails_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers does for a model whose code computes attention itself: it warns, and goes on."""
    monkeypatch.setattr(Qwen2_5_VLTextModel, "_can_set_attn_implementation", lambda *_: False)
    with pytest.raises(ModelLoadError, match="attention of 0 of its 6 layers"):
        VLM.load(str(BUILTIN), device="cpu")


def test_f25_weights_in_pickle_are_not_loaded(tmp_path: Path) -> None:
    for file in BUILTIN.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(BUILTIN / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="safetensors"):
        VLM.load(str(tmp_path), device="cpu")


def test_a_hub_id_is_fetched_once_and_loads_without_network_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with running() as hub:
        stand_in_for_hub(monkeypatch, hub.url)
        hub.repositories["somebody/tiny"] = {f.name: f.read_bytes() for f in BUILTIN.iterdir() if f.is_file()}
        assert VLM.load("somebody/tiny", device="cpu", folder=tmp_path)
    assert VLM.load("somebody/tiny", device="cpu", folder=tmp_path)


def test_published_checkpoints_are_found_in_the_folder_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "sam_vit_l_0b3195.pth"
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(ModelLoadError, match="the published file 3adcc43"):
        Segmenter.load(name, device="cpu", folder=tmp_path)

    with running() as site:
        content = b"no checkpoint, but what was published"
        monkeypatch.setitem(CHECKPOINTS, name, site.checkpoint(name, content))
        (tmp_path / name).unlink()
        with pytest.raises(ModelLoadError, match="not a checkpoint of segment-anything"):
            Segmenter.load(name, device="cpu", folder=tmp_path)
    assert (tmp_path / name).read_bytes() == content


def test_an_own_checkpoint_may_have_its_checksum_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "own.pth"
    torch.save({"weights": torch.zeros(3)}, file)
    (tmp_path / "own.pth.sha256").write_text("0" * 64)
    with pytest.raises(ModelLoadError, match=hashlib.sha256(file.read_bytes()).hexdigest()):
        Segmenter.load(str(file), device="cpu")


def test_a_profile_is_chosen_with_what_is_given_in_place_of_its_own(tmp_path: Path) -> None:
    small = choose("gpu-8g")
    assert (small.dtype, small.quantization, small.folder) == ("auto", "4bit", FOLDER)
    other = choose("gpu-8g", dtype="float16", quantization="none", folder=tmp_path)
    assert (other.dtype, other.quantization, other.folder) == ("float16", "none", tmp_path)


@pytest.mark.parametrize(("kind", "successor"), [("phi3_v", "Phi-4-multimodal"), ("qwen", "Qwen2.5-VL")])
def test_f25_a_family_with_code_of_its_own_is_refused_and_its_code_never_offered(
    tmp_path: Path, kind: str, successor: str
) -> None:
    config = {"model_type": kind, "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(ModelLoadError, match=f"remote code.*{successor}"):
        VLM.load(str(tmp_path), device="cpu")
