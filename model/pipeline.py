"""VL-SAM, top down: ask for the objects, look where the model looked, prompt SAM, refine, merge."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model import merge, points
from model.profiles import Profile
from model.segmenter import Embedding, Masks, Segmenter
from model.terms import parse
from model.types import Box, Detection, Evidence, Image, Mask, Prompt, box_of
from model.vlm import VLM


@dataclass(frozen=True)
class Options:
    """The paper's settings; where it gives none (research in docs/decisions), the values we measured."""

    question: str = "List all objects in the image."
    attention_row: str = "own"  # whose attention is a term's: see VLM.attention_maps
    head_weights: bool = True  # equation 1
    regularise: bool = True  # (j + 1) / N
    threshold: float = 0.4  # of the map's maximum: weaker activations are dropped
    rounds: int = 4  # most instances looked for per term
    residual: float = 0.5  # a further instance needs a peak of this share of the first
    min_score: float = 0.2
    same_term_iou: float = 0.5
    other_term_iou: float = 0.8


_TAIL = 65_536  # bytes: more than any config, and milliseconds to read


def version_of(profile: Profile, options: Options | None = None) -> str:
    """A name for what decides the results, from settings and file identities; loads no weights.

    Trained anew, weights keep their name and size, so the end of each file counts as well.
    """
    digest = hashlib.sha256(repr(sorted(asdict(options or Options()).items())).encode())
    digest.update(f"{profile.four_bit}".encode())
    for name in (profile.vlm, profile.sam):
        path = Path(name).expanduser()
        digest.update(path.name.encode() if path.exists() else name.encode())
        files = (
            sorted(f for f in path.glob("*") if f.is_file())
            if path.is_dir()
            else [path]
            if path.is_file()
            else []
        )
        for file in files:
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}".encode())
            with file.open("rb") as opened:
                opened.seek(max(0, size - _TAIL))
                digest.update(opened.read(_TAIL))
    return f"vlsam-{profile.name}-{digest.hexdigest()[:10]}"


class VLSAM:
    """Both models together. Its methods keep no state between calls."""

    def __init__(
        self, vlm: VLM, segmenter: Segmenter, *, version: str, options: Options | None = None
    ) -> None:
        self._vlm, self._segmenter = vlm, segmenter
        self._options = options or Options()
        self.version = version

    @classmethod
    def load(cls, profile: Profile, device: str = "auto", options: Options | None = None) -> "VLSAM":
        """Load a profile's weights. Raises ModelLoadError."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(
            VLM.load(profile.vlm, device=device, four_bit=profile.four_bit),
            Segmenter.load(profile.sam, device=device),
            version=version_of(profile, options),
            options=options,
        )

    def annotate(self, image: Image) -> list[Detection]:
        """Every object that the VLM names, with its mask; best first. Image: uint8 (H, W, 3)."""
        options = self._options
        answer = self._vlm.answer(image, options.question)
        terms = parse(answer.text)
        if not terms:
            return []
        maps = self._vlm.attention_maps(
            answer,
            [(term.start, term.end) for term in terms],
            row=options.attention_row,
            head_weights=options.head_weights,
            regularise=options.regularise,
        )
        embedding = self._segmenter.encode(image)
        found: list[Detection] = []
        for term, attention in zip(terms, maps, strict=True):
            found += self._instances(embedding, term.text, points.normalised(attention))
        kept = [d for d in found if d.score >= options.min_score and d.mask.any()]
        return merge.suppress(kept, same_term=options.same_term_iou, other_term=options.other_term_iou)

    def listing(self, image: Image) -> str:
        """The VLM's own words for what it sees."""
        return self._vlm.answer(image, self._options.question).text

    def refine(self, image: Image, prompt: Prompt) -> Detection:
        """One mask for a person's prompt, every positive point inside it. Raises PromptError."""
        embedding = self._segmenter.encode(image)
        mask, quality = self._obey(embedding, prompt)
        return self._detection("", "", mask, prompt, {"predicted_iou": quality})

    def _instances(self, embedding: Embedding, term: str, attention: NDArray[np.float32]) -> list[Detection]:
        """Round by round: a pair of points, its mask, and the map without what the mask explains."""
        options, left = self._options, attention
        found: list[Detection] = []
        for _ in range(options.rounds):
            pair = points.pair(left, threshold=options.threshold)
            if pair is None or pair.peak < (options.residual if found else 0):
                break
            height, width = embedding.size
            (x, y), (away_x, away_y) = pair.positive, pair.negative
            prompt = Prompt.of((x * width, y * height, 1), (away_x * width, away_y * height, 0))
            mask, prompt, quality = self._cascade(embedding, prompt)
            if not mask.any():
                break
            scores = {
                "predicted_iou": quality,
                "attention": points.consistency(attention, mask),
            }
            found.append(self._detection(term, options.question, mask, prompt, scores))
            left = points.mask_out(left, mask)
        return found

    def _cascade(self, embedding: Embedding, prompt: Prompt) -> tuple[Mask, Prompt, float]:
        """Three passes: the points; with that answer's logits; with the box of the second answer.

        VL-SAM section 3.4 after PerSAM (arXiv 2305.03048): a single mask first, then the best of three
        levels by predicted IoU.
        """
        first = self._segmenter.decode(embedding, [prompt], multimask=False)[0]
        second = self._best(embedding, replace(prompt, logits=first.logits[0]))
        if not second[0].any():
            return first.masks[0], prompt, float(first.predicted_iou[0])
        boxed = replace(prompt, box=box_of(second[0]), logits=second[2])
        mask, quality, _ = self._best(embedding, boxed)
        return mask, replace(boxed, logits=None), quality

    def _best(self, embedding: Embedding, prompt: Prompt) -> tuple[Mask, float, NDArray[np.float32]]:
        answers = self._segmenter.decode(embedding, [prompt], multimask=True)[0]
        best = int(answers.predicted_iou.argmax())
        return answers.masks[best], float(answers.predicted_iou[best]), answers.logits[best]

    def _obey(self, embedding: Embedding, prompt: Prompt) -> tuple[Mask, float]:
        """Of the answers to a person's prompt, the one that satisfies most clicks; else the first asked.

        A start mask can outweigh a click, so the same prompt is then also asked without it; and if no
        answer holds every positive click, the nearest one does after its threshold is lowered to them.
        """
        start = prompt.mask is not None or prompt.logits is not None
        free = replace(prompt, mask=None, logits=None)
        # One point may mean a part or the whole, so three levels are asked for; more say enough for one.
        ambiguous = len(prompt.points) == 1 and prompt.box is None and not start
        asked = [(prompt, ambiguous), (prompt, not ambiguous)]
        if start:
            asked += [(free, False), (free, True)]
        candidates = [
            (_satisfied(mask, prompt), -turn, float(quality), answer, level)
            for turn, (each, multimask) in enumerate(asked)
            for answer in self._segmenter.decode(embedding, [each], multimask=multimask)
            for level, (mask, quality) in enumerate(zip(answer.masks, answer.predicted_iou, strict=True))
        ]
        _, _, quality, answer, level = max(candidates, key=lambda c: c[:3])
        mask: Mask = answer.masks[level]
        for point in prompt.points[prompt.labels == 1]:
            mask = mask | self._around(embedding, answer, level, point)
        return mask, quality

    def _around(self, embedding: Embedding, answer: Masks, level: int, point: NDArray[np.float32]) -> Mask:
        """What a lower threshold adds around a positive point that its answer left out."""
        mask: Mask = answer.masks[level]
        row, column = _pixel(point, embedding.size)
        if mask[row, column]:
            return mask
        return self._segmenter.component_at(embedding, answer.logits[level], row, column)

    def _detection(
        self, term: str, question: str, mask: Mask, prompt: Prompt, scores: dict[str, float]
    ) -> Detection:
        height, width = mask.shape
        view: Box = (0.0, 0.0, float(width), float(height))
        evidence = Evidence(question, view, replace(prompt, logits=None), scores, self.version)
        return Detection(term, mask, float(np.mean(list(scores.values()))), evidence)


def _pixel(point: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the pixel that holds an xy point; points on the far edge hold the last one."""
    height, width = size
    return int(np.clip(point[1], 0, height - 1)), int(np.clip(point[0], 0, width - 1))


def _satisfied(mask: Mask, prompt: Prompt) -> int:
    count = 0
    for point, label in zip(prompt.points, prompt.labels, strict=True):
        row, column = _pixel(point, (mask.shape[0], mask.shape[1]))
        count += bool(mask[row, column]) == bool(label)
    return count
