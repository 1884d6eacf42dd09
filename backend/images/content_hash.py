"""Hash the pixels of an image, which identifies it."""

import hashlib

import numpy as np

from model.types import Image


def image_hash(image: Image) -> str:
    """Return 32 hex digits that name an image, uint8 (H, W, 3), by its size and pixels."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
