"""What the rooms of `model` share with each other and with whoever calls them."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model import coco

Image = NDArray[np.uint8]  # (H, W, 3) RGB
Mask = NDArray[np.bool_]  # (H, W), pixels of the image
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; x1 and y1 are outside
# Which of SAM's three masks: the whole object, a part, or a part of a part; "auto": what fits the clicks.
Level = Literal["auto", "whole", "part", "subpart"]
LEVELS: tuple[Level, ...] = ("auto", "whole", "part", "subpart")


class VLSAMError(Exception):
    """Root of this package's errors. Its message is one sentence for the person who runs the model.

    VLSAMError
     +- ModelLoadError     weights are missing, corrupt or of a kind that cannot be used
     +- AttentionError     a model did not give what the attention flow needs
     +- GroundingError     a model was asked for boxes in a way it cannot answer
     +- RemoteVLMError     an endpoint that was to list the objects did not
     +- ImageError         an image cannot be fetched, read or decoded
     +- ImageRefused       a model does not take an image, mostly for its shape
     +- PromptError        a prompt is empty, not finite or outside the image
     +- OutOfMemory        the device has too little memory for an image
    """


class ModelLoadError(VLSAMError):
    pass


class AttentionError(VLSAMError):
    pass


class GroundingError(VLSAMError):
    pass


class RemoteVLMError(VLSAMError):
    pass


class ImageError(VLSAMError):
    pass


class ImageRefused(VLSAMError):
    pass


class PromptError(VLSAMError, ValueError):
    pass


class OutOfMemory(VLSAMError):
    pass


def first_line(error: Exception) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)


def refused(model: str, image: Image, reason: str) -> ImageRefused:
    """What to raise where a model does not take an image."""
    height, width = image.shape[:2]
    return ImageRefused(f"{model} does not take an image of {width} x {height} pixels: {reason}")


def _no_points() -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


def _no_labels() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What SAM is given, in pixels of the image. At least one point, or a box."""

    points: NDArray[np.float32] = field(default_factory=_no_points)  # (n, 2) xy
    labels: NDArray[np.int64] = field(default_factory=_no_labels)  # (n,) 1 inside, 0 outside
    box: Box | None = None
    mask: Mask | None = None  # (H, W): a mask to start from
    # (h, w) float32: the same as the segmenter's own logits, from an earlier answer on this image. With both,
    # the segmenter starts from these.
    logits: NDArray[np.float32] | None = None
    # So many of the points, the first ones, were found by a model. Where a person's click says otherwise, it
    # counts and they do not.
    found: int = 0

    @classmethod
    def of(
        cls, *clicks: tuple[float, float, int], box: Box | None = None, mask: Mask | None = None
    ) -> "Prompt":
        """A prompt from clicks (x, y, 1 inside or 0 outside), a box and a mask."""
        xy = np.array([click[:2] for click in clicks], np.float32).reshape(-1, 2)
        return cls(xy, np.array([click[2] for click in clicks], np.int64), box, mask)

    def of_points(self, kept: NDArray[np.bool_]) -> "Prompt":
        """The prompt with those of its points (n,) alone; itself where that is all of them."""
        if kept.all():
            return self
        found = int(np.count_nonzero(kept[: self.found]))
        return replace(self, points=self.points[kept], labels=self.labels[kept], found=found)

    def pixels(self, size: tuple[int, ...]) -> list[tuple[int, int]]:
        """Row and column of the pixel that holds each point, the nearest where none does; size: (H, W)."""
        last = np.array([size[1] - 1, size[0] - 1])
        return [(row, column) for column, row in np.clip(self.points, 0, last).astype(int).tolist()]


@dataclass(frozen=True)
class Evidence:
    """Why a detection exists."""

    question: str  # asked of the VLM; "" where a person prompted
    view: Box  # the part of the image that was looked at
    # Gives this mask again when decoded on this image; of a concept only about: the box of its mask.
    prompt: Prompt
    scores: dict[str, float]  # see model/sam_stage.py
    model_version: str
    # Numbers, from 0, of the prompt's points that the mask has on the wrong side. Of a person's clicks only
    # those that another one on the same pixel contradicts.
    unmet: tuple[int, ...] = ()
    reduced: bool = False  # the VLM saw the image in half its size, for want of memory


@dataclass(frozen=True, eq=False)
class Detection:
    term: str  # "" where a person prompted
    mask: Mask
    score: float  # 0..1
    evidence: Evidence
    # (h, w) low resolution, of the image's square: what the next click on this mask may start from. None
    # where no person prompted.
    logits: NDArray[np.float32] | None = None

    @property
    def box(self) -> Box:
        """The tight box of the mask."""
        return box_of(self.mask)

    def to_json(self) -> dict[str, Any]:
        """Return the detection as plain JSON, as `vlsam annotate --json` prints it.

        Example:
            >>> import json, numpy as np
            >>> mask = np.zeros((4, 6), bool)
            >>> mask[1:3, 2:5] = True
            >>> evidence = Evidence("", (0, 0, 6, 4), Prompt.of((3, 1, 1)), {"predicted_iou": 0.9}, "v1")
            >>> item = Detection("dog", mask, 0.9, evidence).to_json()
            >>> item["box"], item["mask"], item["evidence"]["points"]
            ([2.0, 1.0, 5.0, 3.0], {'size': [4, 6], 'counts': '9220003'}, [[3.0, 1.0, 1]])
            >>> json.loads(json.dumps(item)) == item
            True
        """
        prompt = self.evidence.prompt
        points = zip(prompt.points.tolist(), prompt.labels.tolist(), strict=True)
        return {
            "term": self.term,
            "score": round(self.score, 4),
            "box": list(self.box),
            "mask": coco.encode(self.mask),
            "evidence": {
                "question": self.evidence.question,
                "view": list(self.evidence.view),
                "points": [[x, y, label] for (x, y), label in points],
                "box": list(prompt.box) if prompt.box else None,
                "unmet": list(self.evidence.unmet),
                "reduced": self.evidence.reduced,
                "scores": {name: round(score, 4) for name, score in self.evidence.scores.items()},
                "model_version": self.evidence.model_version,
            },
        }

    def to_coco(self, *, image_id: int, category_id: int, annotation_id: int | None = None) -> dict[str, Any]:
        """Return a COCO annotation with the mask as compressed RLE, the area in pixels, and the score.

        Args:
            image_id: of the image in the COCO file.
            category_id: of the term's category in the COCO file.
            annotation_id: of this annotation; None leaves it out, as in files of COCO results.

        Example:
            >>> import numpy as np
            >>> mask = np.zeros((4, 6), bool)
            >>> mask[1:3, 2:5] = True
            >>> evidence = Evidence("", (0, 0, 6, 4), Prompt.of((3, 1, 1)), {}, "v1")
            >>> annotation = Detection("dog", mask, 0.9, evidence).to_coco(image_id=1, category_id=3)
            >>> annotation["bbox"], annotation["area"], annotation["score"]
            ([2.0, 1.0, 3.0, 2.0], 6, 0.9)
        """
        annotation = coco.annotation(
            coco.encode(self.mask), self.box, self.score, image_id=image_id, category_id=category_id
        )
        return annotation if annotation_id is None else {"id": annotation_id, **annotation}


def box_of(mask: Mask) -> Box:
    """The tight box of a mask; (0, 0, 0, 0) where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
