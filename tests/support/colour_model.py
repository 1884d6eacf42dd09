"""A stand-in for the models of prelabel: fast, and every image has another answer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image as Pillow

from model.types import Detection, Image
from model.vlm.questions import RemoteAnswer
from tests.support.detections import detection, disc

TIGHT, HOPELESS = 200, 201


TERMS = ("cat", "dogs", "<b>mouse</b>")


class Model:
    """Models that name an image by its red: TERMS in turn, every fourth nothing. They fail if green is 255.

    They run out of memory if green is HOPELESS, and if it is TIGHT until they are `smaller`.
    """

    device = torch.device("cpu")

    def __init__(self, *, small: bool = False) -> None:
        self.seen: list[int] = []
        self.small = small

    def smaller(self) -> "Model":
        other = Model(small=True)
        other.seen = self.seen
        return other

    def annotate(
        self,
        image: Image,
        vocabulary: Sequence[str] = (),
        remote_answers: Sequence[Sequence[RemoteAnswer]] | None = None,
    ) -> list[Detection]:
        red, green = (int(value) for value in image[0, 0, :2])
        self.seen.append(red)
        if green == 255:
            raise RuntimeError("made\nto fail")
        if green == HOPELESS or (green == TIGHT and not self.small):
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        height, width = image.shape[:2]
        found = [
            detection(
                term, disc(10 + red, 20 + 5 * place, 8, width=width, height=height), score=0.9 - place / 5
            )
            for place, term in enumerate(TERMS[: red % 4])
        ]
        return found


def save_image(path: Path, red: int, green: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("RGB", (80, 60), (red, green, 0)).save(path)
    return path
