"""Load the image of a task: fetch its file and decode it, within the limits of the settings."""

from functools import partial
from typing import Any

from backend.images.errors import Refused
from backend.images.fetch import Fetcher
from backend.images.studio_urls import Server
from backend.settings import ImageSettings, LabelStudioSettings
from model import image_decoding
from model.deadline import NEVER, Deadline
from model.types import Image

decode = partial(image_decoding.decode, limit="VLSAM_MAX_IMAGE_PIXELS")


class Images:
    """Loads images within the limits of the settings. Safe to share among threads; can be pickled."""

    def __init__(self, images: ImageSettings, label_studio: LabelStudioSettings) -> None:
        self.fetcher = Fetcher(images, label_studio)
        self._arguments, self._max_pixels = (images, label_studio), images.max_image_pixels

    def __reduce__(self) -> tuple[type["Images"], tuple[Any, ...]]:
        return Images, self._arguments  # locks cannot be pickled

    def load(
        self, source: Any, server: Server | None = None, *, task: Any = None, deadline: Deadline = NEVER
    ) -> Image:
        """Return the image at an address in the data of a task, uint8 (H, W, 3) RGB, upright.

        `source` is the value of the image field, `task` the task's id, `server` the task's Label Studio.
        Raises ImageError, also when `deadline` passes before the file is read.
        """
        return self.read(source, server, task=task, deadline=deadline)[1]

    def read(
        self, source: Any, server: Server | None = None, *, task: Any = None, deadline: Deadline = NEVER
    ) -> tuple[bytes, Image]:
        """Return the file and its pixels, as `load`."""
        if not isinstance(source, str) or not source.strip():
            raise Refused("The task has no image address.")
        data = self.fetcher.fetch(source.strip(), server, task=task, deadline=deadline)
        return data, decode(data, max_pixels=self._max_pixels)
