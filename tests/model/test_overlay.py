import numpy as np

from model.overlay import colour_of, draw
from model.types import Detection, Evidence, Prompt


def test_masks_are_tinted_and_the_image_is_left_alone() -> None:
    image = np.full((120, 160, 3), 90, np.uint8)
    mask = np.zeros((120, 160), bool)
    mask[60:110, 40:90] = True
    prompt = Prompt.of((45, 65, 1), (150, 10, 0))
    evidence = Evidence("", (0, 0, 160, 120), prompt, {}, "test")
    picture = draw(image, [Detection("dog", mask, 0.9, evidence)])
    assert picture.shape == image.shape
    assert (image == 90).all()
    inside = picture[85, 65].astype(int)
    assert np.abs(inside - (0.55 * 90 + 0.45 * np.array(colour_of("dog")))).max() <= 1
    assert (picture[118, 150] == 90).all()
    assert (picture[65, 45] != 90).any()  # the point
    assert (picture[10, 150] != 90).any()  # the negative point


def test_any_name_and_a_mask_at_the_edge_can_be_drawn() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    evidence = Evidence("", (0, 0, 20, 20), Prompt.of((19.9, 19.9, 1)), {}, "test")
    for name in ("", "狗 <script>", "x" * 500):
        assert draw(image, [Detection(name, np.ones((20, 20), bool), 1, evidence)]).shape == image.shape
