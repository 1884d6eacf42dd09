from typing import Any

import pytest

from backend.images.errors import Refused
from backend.images.load import Images
from model.types import ImageError
from tests.support.images import data_url
from tests.support.settings import settings_with


def images_with(**values: Any) -> Images:
    settings = settings_with(**values)
    return Images(settings.images, settings.label_studio)


@pytest.mark.parametrize("source", [None, 3, "", "  ", ["/data/upload/1.jpg"], {"url": "x"}])
def test_a_field_without_an_address(source: Any) -> None:
    with pytest.raises(Refused, match="no image address"):
        images_with().load(source)


def test_a_file_is_fetched_and_decoded() -> None:
    assert images_with().load(data_url(8, 6)).shape == (6, 8, 3)
    with pytest.raises(ImageError, match="more than 40 pixels"):
        images_with(max_image_pixels=40).load(data_url(8, 6))
