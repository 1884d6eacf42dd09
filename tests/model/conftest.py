from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from model.builtin.scenes import Scene, draw_scene
from model.pipeline import VLSAM
from model.profiles import choose
from model.segmentation.segmenter import Segmenter
from model.vlm.vlm import VLM
from tests.support import vlm_families
from tests.support.vlm_families import unmix

Load = Callable[..., VLM]


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


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Load a family's tiny model by name. With `unmixed`, its vision tower mixes no patches."""

    @cache
    def folder(name: str) -> str:
        return vlm_families.saved(name, tmp_path_factory.mktemp(name))

    @cache
    def loaded(name: str, unmixed: bool = False) -> VLM:
        vlm = VLM.load(folder(name), device="cpu")
        if unmixed:
            unmix(vlm.model)
        return vlm

    return loaded
