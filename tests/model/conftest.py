from pathlib import Path

import numpy as np
import pytest

from model.builtin.scenes import Scene, draw_scene
from model.pipeline import VLSAM
from model.profiles import choose
from model.segmenter import Segmenter
from model.vlm import VLM


@pytest.fixture(scope="session")
def vlm() -> VLM:
    return VLM.load(choose().vlm, device="cpu")


@pytest.fixture(scope="session")
def segmenter() -> Segmenter:
    return Segmenter.load(choose().sam, device="cpu")


@pytest.fixture(scope="session")
def vlsam(vlm: VLM, segmenter: Segmenter) -> VLSAM:
    return VLSAM(vlm, segmenter, version="test")


@pytest.fixture
def scene() -> Scene:
    return draw_scene(np.random.default_rng(7), width=420, height=300, count=3, degrade=False)


@pytest.fixture(scope="session")
def sam_folder() -> Path:
    return Path(choose().sam)
