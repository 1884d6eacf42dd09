"""Define the types that `model` shares with its callers, and its errors."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model import coco

Image = NDArray[np.uint8]  #: (H, W, 3), RGB
Mask = NDArray[np.bool_]  #: (H, W), pixels of the image
Box = tuple[float, float, float, float]  #: x0, y0, x1, y1 in pixels; x1 and y1 are exclusive
# Which of SAM's three masks: the whole object, a part, or a part of a part; "auto": what fits the clicks.
Level = Literal["auto", "whole", "part", "subpart"]
LEVELS: tuple[Level, ...] = ("auto", "whole", "part", "subpart")


class VLSAMError(Exception):
    """Root of this package's errors. The message is one sentence for the person who runs the model."""


class ModelLoadError(VLSAMError):
    """Weights are missing, corrupt or of a kind that cannot be used."""


class AttentionError(VLSAMError):
    """A model does not support the attention flow."""


class GroundingError(VLSAMError):
    """A model cannot write boxes, or answered without them."""


class RemoteVLMError(VLSAMError):
    """The remote VLM gave no usable answer."""


class ImageError(VLSAMError):
    """An image cannot be fetched, read or decoded."""


class ImageRefused(VLSAMError):
    """A model cannot process an image, mostly because of its shape."""


class PromptError(VLSAMError, ValueError):
    """A prompt is empty or malformed."""


class OutOfMemory(VLSAMError):
    """The device has too little memory for an image."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's class if it has none."""
    return next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)


def refused(model: str, image: Image, reason: str) -> ImageRefused:
    """Return the error for an image that `model` cannot process."""
    height, width = image.shape[:2]
    return ImageRefused(f"{model} does not take an image of {width} x {height} pixels: {reason}")


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt for the segmenter, in pixels of the image: at least one point, or a box.

    Example:
        >>> Prompt.of((120, 80, 1), (10, 20, 0), box=(90, 50, 200, 180)).labels.tolist()
        [1, 0]
    """

    #: float32 (n, 2), x and y of each point
    points: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    #: int64 (n,), 1 for a point inside the object and 0 for one outside
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    #: x0, y0, x1, y1 around the object
    box: Box | None = None
    #: bool (H, W), a mask to start from
    mask: Mask | None = field(default=None, repr=False)
    #: float32 (h, w), the segmenter's own logits of an earlier answer on this image. They replace `mask`.
    logits: NDArray[np.float32] | None = field(default=None, repr=False)
    #: A model chose this many points, the first ones. A person's click overrules those that contradict it.
    model_points: int = 0

    @classmethod
    def of(
        cls, *clicks: tuple[float, float, int], box: Box | None = None, mask: Mask | None = None
    ) -> "Prompt":
        """Make a prompt of clicks.

        Args:
            clicks: x and y in pixels, and 1 for a click inside the object or 0 for one outside.
            box: x0, y0, x1, y1 in pixels.
            mask: bool (H, W), to start from.

        Raises:
            PromptError: a click is not three numbers, the box is not four, or x0 > x1 or y0 > y1.
        """
        corners = None
        try:
            rows = np.array(clicks, np.float32).reshape(len(clicks), 3)
            if box is not None:
                x0, y0, x1, y1 = map(float, box)
                corners = (x0, y0, x1, y1)
        except (TypeError, ValueError):
            raise PromptError("a click is x, y and 1 or 0, and a box is x0, y0, x1, y1") from None
        if corners is not None and (x0 > x1 or y0 > y1):
            raise PromptError("a box needs x0 <= x1 and y0 <= y1")
        return cls(rows[:, :2], rows[:, 2].astype(np.int64), corners, mask)

    def of_points(self, kept: NDArray[np.bool_]) -> "Prompt":
        """Return the prompt without the points for which `kept` (n,) is False."""
        if kept.all():
            return self
        model_points = int(np.count_nonzero(kept[: self.model_points]))
        return replace(self, points=self.points[kept], labels=self.labels[kept], model_points=model_points)

    def pixels(self, size: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return the row and column of each point's pixel, clipped to an image of `size` (H, W)."""
        last = np.array([size[1] - 1, size[0] - 1])
        return [(row, column) for column, row in np.clip(self.points, 0, last).astype(int).tolist()]


@dataclass(frozen=True)
class Evidence:
    """The origin of a detection: question, view, prompt, scores and model version."""

    #: the question to the VLM; "" for a person's prompt
    question: str
    #: the part of the image that the models saw
    view: Box
    #: It decodes to the same mask. For an object found by noun phrase it is the mask's box, so only nearly.
    prompt: Prompt
    #: by name, each 0 to 1; their mean is the detection's score
    scores: dict[str, float]
    #: identifies the weights and settings that decided the result
    model_version: str
    #: Indices of prompt points that the mask violates. Of a person's clicks, only those that another click on
    #: the same pixel contradicts.
    unmet: tuple[int, ...] = ()
    #: whether the VLM saw the image at half its size, because memory ran out
    reduced: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Detection:
    """An object with its mask.

    `VLSAM.annotate` and `VLSAM.find` name it, `VLSAM.refine` does not.
    """

    #: the object's name in the VLM's words; "" for a person's prompt
    term: str
    #: bool (H, W), pixels of the image
    mask: Mask
    #: 0 to 1
    score: float
    #: the detection's origin
    evidence: Evidence
    #: float32 (h, w), low resolution, on the segmenter's square: where the next click on this mask may start.
    #: None without a person's prompt.
    logits: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"Detection({self.term!r}, score={self.score:.3f}, box={self.box}, mask={height}x{width})"

    @property
    def box(self) -> Box:
        """The tight box x0, y0, x1, y1 of the mask in pixels; x1 and y1 are exclusive."""
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
    """Return the tight box of a mask, x0, y0, x1, y1 in pixels; (0, 0, 0, 0) if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
