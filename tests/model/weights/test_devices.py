from pathlib import Path

import pytest
import torch

from model.pipeline import VLSAM
from model.profiles import choose
from model.segmentation.segmenter import Segmenter
from model.types import ModelLoadError
from model.weights import devices


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs of CUDA, as PyTorch would say it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_cpu_is_chosen() -> None:
    assert devices.choose("auto") == "cpu"
    assert devices.choose("cpu") == "cpu"
    assert devices.choose("balanced") == "balanced"  # transformers' own, which takes what there is


@pytest.mark.usefixtures("gpus")
def test_with_gpus_one_of_them_is_chosen() -> None:
    assert [devices.choose(name) for name in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    with pytest.raises(
        ModelLoadError, match=r"the device cuda:7 is not there: .* has 2 .* the last is cuda:1"
    ):
        devices.choose("cuda:7")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "xpu", "xpu:3"])
def test_a_device_that_is_not_there_is_said_before_any_weights_are_looked_for(
    name: str, tmp_path: Path
) -> None:
    nothing = choose(vlm=str(tmp_path / "vlm"), sam=str(tmp_path / "sam"))
    with pytest.raises(
        ModelLoadError, match=f"the device {name} is not there: PyTorch .* choose auto or cpu"
    ):
        VLSAM.load(nothing, name)
    with pytest.raises(ModelLoadError, match=f"the device {name} is not there"):
        Segmenter.load(nothing.sam, device=name)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "0", "cuda:-1", "cuda 1"])
def test_what_is_no_device_is_said(name: str) -> None:
    with pytest.raises(ModelLoadError, match=f"{name!r} is not a device: choose auto, cpu, cuda"):
        devices.choose(name)
