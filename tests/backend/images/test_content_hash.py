import numpy as np

from backend.images.content_hash import image_hash


def test_a_hash_tells_images_apart_by_pixels_and_size() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    assert image_hash(image) == image_hash(image.copy())
    assert image_hash(image) != image_hash(image + 1)
    assert image_hash(image) != image_hash(image.reshape(6, 4, 3))
