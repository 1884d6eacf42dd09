"""Choose SAM's point prompts from an attention map: VL-SAM section 3.3, and other methods."""

import logging
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.types import Box, Mask

log = logging.getLogger(f"vlsam.{__name__}")

MOST = 3  # positive points of "maxima" and "kmeans" at most
APART = 2.0  # least distance of two maxima, in cells

Map = NDArray[np.float32]
Cell = tuple[int, int]


@dataclass(frozen=True)
class PointPrompt:
    """Points and a box for SAM, in shares of the view (0..1), with the map's maximum in their area."""

    points: tuple[tuple[float, float, int], ...]  # x, y, 1 inside or 0 outside
    box: Box
    peak: float  # the map's maximum in the area; 1 at the first, before masks are set to 0


def choose(attention: Map, method: str, *, threshold: float, components: int = 1) -> list[PointPrompt]:
    """Return prompts from a map (rows, columns) of 0..1, largest area first; [] from a constant map.

    Cells below `threshold` x maximum are dropped. The `components` largest 8-connected areas of the rest are
    positive. All other cells are negative. Each area gives one prompt, with positive points by `method`:

    - "peak" and "pair": its strongest cell (the paper's; "peak" has no negative point)
    - "maxima": its local maxima, strongest first, none nearer than APART to a stronger one
    - "kmeans": the cell nearest to the centre of each of up to MOST clusters

    The negative point is the weakest negative cell (the paper's).
    """
    peak = float(attention.max(initial=0))
    if peak <= 0:
        return []
    strong = (attention >= threshold * peak).astype(np.uint8)
    _, labelled, stats, _ = cv2.connectedComponentsWithStats(strong, connectivity=8)
    if strong.all():
        return []
    order = np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:components] + 1
    outside = np.where(strong, np.inf, attention) if components > 1 else None
    found = []
    for index in order:
        area = labelled == index
        rest = np.where(area, np.inf, attention) if outside is None else outside
        low = _cell(rest.argmin(), attention.shape)
        positives = _positives(attention, area, method)
        points = [(*_middle(cell, attention.shape), 1) for cell in positives]
        if method != "peak":
            points.append((*_middle(low, attention.shape), 0))
        x, y, w, h = stats[index, :4].tolist()
        rows, columns = attention.shape
        box = (x / columns, y / rows, (x + w) / columns, (y + h) / rows)
        found.append(PointPrompt(tuple(points), box, float(attention[area].max())))
    return found


def _positives(attention: Map, area: Mask, method: str) -> list[Cell]:
    if method == "maxima":
        return _maxima(attention, area)
    if method == "kmeans":
        try:
            return _centres(attention, area)
        except (ValueError, cv2.error) as error:
            log.info("K-means found no clusters (%s): using the strongest point alone.", error)
    return [_cell(np.where(area, attention, -1).argmax(), attention.shape)]


def _maxima(attention: Map, area: Mask) -> list[Cell]:
    highest = cv2.dilate(attention, np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero(area & (attention >= highest))
    ranked = sorted(zip(rows.tolist(), columns.tolist(), strict=True), key=lambda cell: -attention[cell])
    kept: list[Cell] = []
    for row, column in ranked:
        if all(np.hypot(row - r, column - c) >= APART for r, c in kept):
            kept.append((row, column))
        if len(kept) == MOST:
            break
    return kept


def _centres(attention: Map, area: Mask) -> list[Cell]:
    cells = np.argwhere(area)
    count = min(MOST, len(cells) // 2)
    if count < 2:
        raise ValueError(f"{len(cells)} cells are too few")
    # Start from slices along the longer side, so that the outcome is deterministic.
    along = cells[:, int(np.ptp(cells[:, 1]) > np.ptp(cells[:, 0]))]
    slices = (np.argsort(np.argsort(along, kind="stable")) * count // len(cells)).astype(np.int32)
    stop = (cv2.TERM_CRITERIA_MAX_ITER + cv2.TERM_CRITERIA_EPS, 20, 0.01)
    _, member, centres = cv2.kmeans(
        cells.astype(np.float32), count, slices[:, None], stop, 1, cv2.KMEANS_USE_INITIAL_LABELS
    )
    found = []
    for index, centre in enumerate(centres):
        own = cells[member[:, 0] == index]
        if not len(own):
            raise ValueError("a cluster is empty")
        row, column = own[np.square(own - centre).sum(1).argmin()]
        found.append((int(row), int(column)))
    return sorted(found, key=lambda cell: -attention[cell])


def _cell(flat: np.intp, shape: tuple[int, ...]) -> Cell:
    return int(flat) // shape[1], int(flat) % shape[1]


def _middle(cell: Cell, shape: tuple[int, ...]) -> tuple[float, float]:
    return (cell[1] + 0.5) / shape[1], (cell[0] + 0.5) / shape[0]


def mask_out(attention: Map, mask: Mask) -> Map:
    """Return the map with 0 in and next to the cells that a mask of the same view, of any size, covers."""
    rows, columns = attention.shape
    share = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    # A token's attention spreads to its neighbours, so the mask explains these as well.
    near = cv2.dilate((share > 0.1).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return np.where(near, np.float32(0), attention)


def consistency(attention: Map, mask: Mask) -> float:
    """Return the attention-consistency score of DecAF (arXiv 2510.19592), 0..1.

    This is the mask's share of the sum of all cells at or above the map's mean. Each cell of the mask below
    the mean costs the map's maximum.
    """
    rows, columns = attention.shape
    share = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    signed = np.where(attention >= attention.mean(), attention, -float(attention.max()))
    best = float(signed[signed > 0].sum())
    return float(np.clip((share * signed).sum() / best, 0, 1)) if best > 0 else 0.0
