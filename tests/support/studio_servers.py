"""A real Label Studio, a real `vlsam serve`, and the projects of end-to-end tests."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from backend.demo import processes
from backend.demo.processes import Account, Service
from model.builtin.scenes import NAMES, draw_scene
from tests.support.paths import ROOT

EXECUTABLE = ROOT / ".venv-studio" / "bin" / "label-studio"


OWNER = Account("owner@example.com", "e2e-password", "e2e0" * 10)


START_TIMEOUT_S = 300.0


# Label Studio's flag for refusing predictions that do not fit the labeling config; off as it ships.
VALIDATION = "fflag_feat_utc_210_prediction_validation_15082025"


ORIENTATION = 0x0112  # the EXIF tag; 6 says: turn clockwise by a quarter to show


def without(reason: str) -> NoReturn:
    """Skip what needs something that is not installed; in CI, which installs it, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Servers:
    studio: Service
    backend: Service


def start_backend(studio: Service, token: str, log: Path, **settings: str) -> Service:
    settings = {"VLSAM_PROFILE": "builtin", **settings}
    return processes.start_backend(processes.free_port(0), studio.url, token, log, settings)


@dataclass(frozen=True)
class Project:
    id: int
    backend: int  # the id of the backend in Label Studio
    tasks: tuple[int, ...]  # in the order of the images


MakeProject = Callable[[str, str, Sequence[Path]], Project]


def save_scene(path: Path, seed: int, *, width: int, height: int, turned: bool = False) -> Path:
    """Draw and save a scene of one to three objects."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 4))
    scene = draw_scene(
        rng, width=width, height=height, count=count, scale=(0.35, 0.5), degrade=False, names=NAMES
    )
    return save_image(path, scene.image, turned=turned)


def save_image(path: Path, image: NDArray[np.uint8], *, turned: bool = False) -> Path:
    """Save an image. With `turned`, store it on its side with an EXIF orientation."""
    shown = Image.fromarray(image)
    if turned:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        shown.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    else:
        shown.save(path)
    return path
