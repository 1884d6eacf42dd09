"""List and read the images of `vlsam annotate` and `vlsam segment`. Write JSON, overlays and maps."""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from backend.images import local_files
from backend.images.fetch import decode
from backend.images.local_files import text
from backend.images.output_files import Pictures, is_ours, save
from backend.settings import ImageSettings, Settings
from backend.telemetry.logs import printable, remark
from model.attention.maps import normalised
from model.overlay import draw, heat, tiled
from model.pipeline import VLSAM
from model.types import Detection, Image, ImageError
from model.vlm_stage import TermMap


def load_models(profile: str | None, settings: Settings) -> VLSAM:
    """Load a profile's models, by default the settings' profile. Warn on stderr about demo weights."""
    selected = settings.models.select(profile)
    if selected.demo:
        remark("demo weights, which know 40 drawn objects only (see --profile)")
    return VLSAM.load(selected, settings.models.device, settings.detection.options)


def listed(arguments: Sequence[Path]) -> tuple[list[Path], Counter[str]]:
    """Return the images of the arguments, and the count of skipped files by reason.

    A missing file is listed as an image, and `read` raises its error. Raises ValueError if none is listed.
    """
    images = set[Path]()
    named: list[Path] = []
    skipped = Counter[str]()
    for path in arguments:
        name = str(path)
        listing = None
        if os.path.isdir(name) or (local_files.is_pattern(name) and not os.path.lexists(name)):
            listing = local_files.listed(name)
            skipped.update(listing.skipped)
        if listing is None or not (listing.names or os.path.isdir(name)):
            named.append(path)
            images.add(path)
            continue
        if not listing.names:
            skipped[f"folder without images: {name}"] += 1
        for image in (Path(listing.root + each) for each in listing.names):
            if image in images:
                skipped["image that is named already"] += 1
            elif is_ours(image):
                skipped["picture of an earlier run"] += 1
            else:
                images.add(image)
                named.append(image)
    if not named:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in skipped.most_common(8))
        raise ValueError(f"there are no images: {reasons}")
    return named, skipped


def read(path: Path, settings: ImageSettings) -> Image:
    """Read and decode an image file. Raises ImageError."""
    try:
        data = local_files.read(str(path), settings.max_image_bytes + 1)
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    if len(data) > settings.max_image_bytes:
        raise ImageError(f"The file has more than {settings.max_image_bytes} bytes (VLSAM_MAX_IMAGE_BYTES).")
    return decode(data, max_pixels=settings.max_image_pixels)


def name_pictures(pictures: Pictures, folder: Path | None, paths: Sequence[Path]) -> list[Path | None]:
    """Choose the path of each image's overlay or map in a folder. Return only None if `folder` is None.

    All names are chosen before any picture is written. So an image that fails changes no other name.
    """
    if folder is None:
        return [None] * len(paths)
    names = [pictures.name(folder, path.stem) for path in paths]
    for path, picture in zip(paths, names, strict=True):
        if picture.stem != path.stem:
            remark(text(f"{path}: its picture is {picture}"))
    return [*names]


def item_of(
    path: Path, image: Image, detections: Sequence[Detection], overlay: Path | None
) -> dict[str, Any]:
    """Return the JSON item of an image. Write its overlay if a path is given."""
    if overlay:
        save(draw(image, detections), overlay)
    height, width = image.shape[:2]
    return {
        "image": text(str(path)),
        "width": width,
        "height": height,
        "detections": [detection.to_json() for detection in detections],
    }


def print_names(path: Path, detections: Sequence[Detection]) -> None:
    """Print the terms and scores of an image, above a progress bar."""
    names = ", ".join(f"{d.term} {d.score:.2f}".strip() for d in detections) or "nothing found"
    # A terminal would execute control characters.
    tqdm.write(printable(text(f"{path}: {names}")), file=sys.stdout)


def write_maps(
    pictures: Pictures, sheet: Path, image: Image, maps: Sequence[TermMap], *, layers: bool
) -> None:
    """Write a sheet of all terms' attention maps. With `layers`, also write a sheet of each term's layers."""
    if not maps:
        return
    save(tiled([image, *(heat(image, each.attention, each.term) for each in maps)], columns=3), sheet)
    for number, each in enumerate(maps if layers else (), 1):
        tiles = [
            heat(image, normalised(values[None])[0], f"{each.term}: layer {layer}")
            for layer, values in enumerate(each.layers if each.layers is not None else (), 1)
        ]
        # A term is text of the model and no file name, so the files are numbered.
        save(tiled(tiles, columns=4), pictures.name(sheet.parent, f"{sheet.stem}-{number}-layers"))
