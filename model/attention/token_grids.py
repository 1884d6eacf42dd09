"""Map each image token of a VLM's input to its rectangle of the image, per model family.

Each family has a layout function. It reads all sizes from the config and the processor, and raises
AttentionError if the number of tokens does not match.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.image_processing_utils import select_best_resolution
from transformers.models.cohere2_vision import image_processing_cohere2_vision as cohere2_vision
from transformers.models.got_ocr2 import image_processing_got_ocr2 as got_ocr2

from model.types import AttentionError, Box, ModelLoadError

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
SLIVER = 1e-6  # share of a cell below which its cover is a rounding error


@dataclass(frozen=True, eq=False)
class Plane:
    """A rectangle of the image, divided into equal cells with one token each."""

    tokens: NDArray[np.int64]  # (rows, columns) positions in the input sequence
    box: Box  # in shares of the image's width and height, beyond 0..1 where the processor pads


@dataclass(frozen=True, eq=False)
class Grid:
    """The image tokens of one input, in one plane for each view that the processor makes of the image."""

    planes: tuple[Plane, ...]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Return the unique positions of all tokens in the input sequence, ascending: (k,)."""
        every: NDArray[np.int64] = np.concatenate([plane.tokens.ravel() for plane in self.planes])
        return np.unique(every)

    @property
    def shape(self) -> tuple[int, int]:
        """Return the maps' rows and columns: the whole image in cells as small as the finest plane's."""
        densities = []
        for plane in self.planes:
            (rows, columns), (x0, y0, x1, y1) = plane.tokens.shape, plane.box
            densities.append((rows / (y1 - y0), columns / (x1 - x0)))
        down, across = max(densities, key=math.prod)
        return max(round(down), 1), max(round(across), 1)

    def spread(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert values of all N tokens of the sequence, (n, N), to maps: float32 (n, rows, columns).

        The value of a cell is the mean over the image tokens that cover it, in all planes. Each token's
        weight is the share of the cell that it covers. A cell that no token covers is 0.
        """
        rows, columns = self.shape
        total = np.zeros((len(values), rows, columns))
        cover = np.zeros((rows, columns))
        for plane in self.planes:
            x0, y0, x1, y1 = plane.box
            down = _overlap(rows, y0, y1, plane.tokens.shape[0])
            across = _overlap(columns, x0, x1, plane.tokens.shape[1])
            total += down @ values[:, plane.tokens].astype(np.float64) @ across.T
            cover += np.outer(down.sum(1), across.sum(1))
        seen = cover > SLIVER
        return np.where(seen, total / np.where(seen, cover, 1.0), 0.0).astype(np.float32)


def _overlap(cells: int, start: float, stop: float, parts: int) -> NDArray[np.float64]:
    """Return the share of each cell that each part covers: float64 (cells, parts).

    The cells divide the interval 0..1 equally, and the parts divide start..stop equally.
    """
    ours, theirs = np.linspace(0.0, 1.0, cells + 1), np.linspace(start, stop, parts + 1)
    low = np.maximum(ours[:-1, None], theirs[None, :-1])
    high = np.minimum(ours[1:, None], theirs[None, 1:])
    share: NDArray[np.float64] = np.maximum(high - low, 0.0) * cells
    return share


@dataclass(frozen=True, eq=False)
class _Input:
    """One image's size and image tokens, with the model's config and processor."""

    config: Any
    processor: Any
    inputs: Any
    tokens: NDArray[np.int64]  # (k,) positions of the image tokens
    height: int  # of the image, pixels
    width: int


@dataclass(frozen=True)
class _Square:
    """The grid of cells, one per token, of a vision tower's square input picture. Lengths are in pixels."""

    cells: int  # per side, after patches are merged
    cell: int  # side of a cell
    side: int  # not always cells * cell: 27 patches of 14 leave 6 of 384 pixels unseen

    @classmethod
    def of(cls, config: Any, merge: float = 1) -> "_Square":
        vision = config.vision_config
        side, patch = (int(np.max(n)) for n in (vision.image_size, vision.patch_size))
        return cls(int(side // patch // merge), int(patch * merge), side)

    def plane(self, tokens: NDArray[np.int64], box: Box = WHOLE) -> Plane:
        """Return the plane of a picture of `box`. Raises AttentionError if the number of tokens is wrong."""
        (x0, y0, x1, y1), share = box, self.cells * self.cell / self.side
        inner = (x0, y0, x0 + (x1 - x0) * share, y0 + (y1 - y0) * share)
        return Plane(_filled(tokens, self.cells, self.cells), inner)

    def pictures(self, tokens: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Split the tokens into pictures of (cells * cells,) each. Raises AttentionError if some remain."""
        return list(_filled(tokens, max(len(tokens) // self.cells**2, 1), self.cells**2))


def _filled(tokens: NDArray[np.int64], *shape: int) -> NDArray[np.int64]:
    if tokens.size != math.prod(shape):
        raise _misfit(tokens, " x ".join(map(str, shape)))
    return tokens.reshape(shape)


def _misfit(tokens: NDArray[np.int64], what: str) -> AttentionError:
    return AttentionError(
        f"{tokens.size} image tokens do not fill {what}: the model's config and its processor disagree"
    )


def _merged_patches(image: _Input) -> Iterator[Plane]:
    """Yield the plane of an image that is resized to whole patches, with one token per n x n patches."""
    merge = image.config.vision_config.spatial_merge_size
    _, rows, columns = (int(n) // merge for n in image.inputs["image_grid_thw"][0])
    yield Plane(_filled(image.tokens, rows, columns), WHOLE)


def _broken_rows(image: _Input) -> Iterator[Plane]:
    """Yield a plane as `_merged_patches` does, for models that end each row with a token for a line break."""
    cell = int(np.max(image.config.vision_config.patch_size)) * getattr(image.config, "spatial_merge_size", 1)
    rows, columns = (int(n) // cell for n in image.inputs["image_sizes"][0])
    yield Plane(_filled(image.tokens, rows, columns), WHOLE)


def _one_square(image: _Input) -> Iterator[Plane]:
    """Yield the plane of an image that the processor stretches, pads or crops to one square."""
    if "image_sizes" in image.inputs:  # LLaVA with Pixtral's vision tower
        yield from _broken_rows(image)
        return
    images = image.processor.image_processor
    size = np.array([image.width, image.height])
    padded = np.full(2, size.max()) if getattr(images, "do_pad", False) else size
    margin = (padded - size) // 2
    resized = padded
    if images.do_resize and (edge := images.size.shortest_edge):
        resized = edge * padded // padded.min()
    elif images.do_resize:
        resized = np.array([images.size.width, images.size.height])
    cut = resized
    if images.do_center_crop:
        cut = np.array([images.crop_size.width, images.crop_size.height])
    start = np.trunc((resized - cut) / 2)
    (x0, y0), (x1, y1) = ((edge / resized * padded - margin) / size for edge in (start, start + cut))
    square = _Square.of(image.config)
    if pooled := getattr(image.config, "mm_tokens_per_image", None):
        square = _Square.of(image.config, square.cells // math.isqrt(pooled))
    yield square.plane(image.tokens, (x0, y0, x1, y1))


def _tiles(square: _Square, tokens: list[NDArray[np.int64]], rows: int, columns: int) -> Iterator[Plane]:
    """Yield the planes of rows x columns tiles, row by row, then the whole image's. Raises AttentionError."""
    *tiles, whole = tokens
    if len(tiles) != rows * columns:
        raise _misfit(np.concatenate(tokens), f"{rows} x {columns} tiles and the whole image")
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        box = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        yield square.plane(tile, box)
    yield square.plane(whole)


def _canvas_tiles(image: _Input) -> Iterator[Plane]:
    """Yield the planes of the tiles of an image, then the whole image's; of a small image only the latter.

    The image is stretched to a canvas of tiles. The canvas is computed by the processor's rule.
    """
    config, images = image.config, image.processor.image_processor
    merge = getattr(config, "downsample_factor", None) or 1 / config.downsample_ratio
    square = _Square.of(config, merge)
    tokens = square.pictures(image.tokens)
    # The processor's output does not contain the canvas: compute it by the same rule.
    rule = cohere2_vision if config.model_type == "cohere2_vision" else got_ocr2
    size, tile = (image.height, image.width), (images.size.height, images.size.width)
    columns, rows = rule.get_optimal_tiled_canvas(size, tile, images.min_patches, images.max_patches)
    yield from _tiles(square, tokens, *((rows, columns) if len(tokens) > 1 else (0, 0)))


def _tagged_tiles(image: _Input) -> Iterator[Plane]:
    """Yield the planes of the tiles of an image, then the whole image's.

    The number of tiles comes from the text tags in the input, such as <row_1_col_2>, before each tile.
    """
    square = _Square.of(image.config, image.config.scale_factor)
    tokens = square.pictures(image.tokens)
    ids = image.inputs["input_ids"][0, : image.tokens.max() + 1]
    tags = re.findall(r"<row_(\d+)_col_(\d+)>", image.processor.tokenizer.decode(ids))
    rows, columns = (max((int(tag[i]) for tag in tags), default=0) for i in range(2))
    yield from _tiles(square, tokens, rows, columns)


def _any_resolution(image: _Input) -> Iterator[Plane]:
    """Yield the plane of the whole image, stretched to a square, then the planes of a canvas of tiles.

    The image is fitted into the canvas with its proportions. The model drops the tokens of padding and ends
    each row with a newline token. Above a limit of tokens the model resamples the canvas to fewer rows and
    columns; the canvas is then one plane.
    """
    config, square = image.config, _Square.of(image.config)
    base, fine = np.split(image.tokens, [square.cells**2])
    yield square.plane(base)

    size = np.array([image.height, image.width])
    canvas = np.array(select_best_resolution(size.tolist(), config.image_grid_pinpoints))
    shown = np.minimum(np.ceil(size * (canvas / size).min()), canvas)  # pixels that show the image
    margin = (canvas - shown) // 2
    cells = canvas // square.side * square.cells
    filled = np.floor((size * (cells / size).min()).round(7)).astype(int)  # rounded as the models do
    first = (cells - filled) // 2
    last = cells - first

    def edges(axis: int, start: int, stop: int) -> tuple[float, float]:
        """Return where the canvas's cells [start, stop) begin and end in the image, in shares of its side."""
        pixels = [n // square.cells * square.side + n % square.cells * square.cell for n in (start, stop - 1)]
        low, high = ((n - margin[axis]) / shown[axis] for n in (pixels[0], pixels[1] + square.cell))
        return float(low), float(high)

    rows, columns = (last - first).tolist()
    most = int(getattr(config, "vision_aspect_ratio", "anyres_max_0").removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * square.cells**2)) if most else 0.0
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    tokens = _filled(fine, rows, columns + 1)[:, :-1]
    if ratio > 1.1:
        (y0, y1), (x0, x1) = (edges(axis, first[axis], last[axis]) for axis in range(2))
        yield Plane(tokens, (x0, y0, x1, y1))
        return
    starts = [range(0, n, square.cells) for n in cells]
    cuts = [sorted({a, b, *(n for n in s if a < n < b)}) for a, b, s in zip(first, last, starts, strict=True)]
    for (top, bottom), (left, right) in product(*map(pairwise, cuts)):
        (y0, y1), (x0, x1) = edges(0, top, bottom), edges(1, left, right)
        part = tokens[top - first[0] : bottom - first[0], left - first[1] : right - first[1]]
        yield Plane(part, (x0, y0, x1, y1))


LAYOUTS: dict[str, Callable[[_Input], Iterator[Plane]]] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"), _merged_patches),
    **dict.fromkeys(("llava", "vipllava", "paligemma", "gemma3"), _one_square),
    **dict.fromkeys(("llava_next", "llava_onevision"), _any_resolution),
    **dict.fromkeys(("internvl", "aya_vision", "cohere2_vision"), _canvas_tiles),
    **dict.fromkeys(("idefics3", "smolvlm"), _tagged_tiles),
    "mistral3": _broken_rows,
}
# Model types that need code outside transformers, which is never run.
REMOTE = {
    "phi3_v": "Phi-3-Vision needs remote code: use Qwen2.5-VL-3B instead, or Gemma 3 (its own successor, "
    "Phi-4-multimodal, is not among transformers' image-text-to-text models)",
    "qwen": "Qwen-VL needs remote code: use its successor Qwen2.5-VL, or Qwen3-VL, instead",
    "internvl_chat": "this InternVL needs remote code: use the same model in its native form, the one "
    "whose name ends in -hf",
}


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ModelLoadError for a config.json whose model type is not in the table."""
    kind = str(config.get("model_type", ""))
    if kind in REMOTE:
        raise ModelLoadError(REMOTE[kind])
    if kind not in LAYOUTS:
        raise ModelLoadError(
            f"the token grid of {kind!r} models is not known: add a function to LAYOUTS in "
            f"model/attention/token_grids.py, or use one of {', '.join(LAYOUTS)}"
        )


def reduction(kind: str, processor: Any, size: tuple[int, int]) -> float:
    """Return the factor by which a family's processor reduces the sides of an image of `size` (W, H).

    The factor is 1 for a small image, and for families that resize every image to one size.
    """
    width, height = size
    limit = getattr(processor.image_processor.size, "longest_edge", None)
    if not limit:
        return 1.0
    if LAYOUTS[kind] is _merged_patches:  # to them it is a number of pixels
        return max(1.0, math.sqrt(width * height / limit))
    return max(1.0, max(width, height) / limit) if LAYOUTS[kind] is _broken_rows else 1.0


def grid_of(model: Any, processor: Any, inputs: Any, image_size: tuple[int, ...]) -> Grid:
    """Return the token grid of the one image in a processor's output; `image_size` is (H, W).

    Raises AttentionError if the number of image tokens does not fit.
    """
    tokens = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().cpu().numpy()
    height, width = image_size
    image = _Input(model.config, processor, inputs, tokens, height, width)
    return Grid(tuple(LAYOUTS[model.config.model_type](image)))
