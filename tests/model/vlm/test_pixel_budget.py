"""A photograph of any size is shown to every family in no more than its budget."""

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import Qwen2VLImageProcessor

from model.attention import capture
from model.profiles import PROFILES, choose
from model.types import ImageRefused
from model.versions import segmenter_version_of, version_of
from model.vlm import pixel_budget
from model.vlm.vlm import VLM
from tests.support import vlm_families

Load = Callable[[str], VLM]
PHOTO = [(3000, 4000), (10_000, 1200)]  # 12 megapixels: height, width
# Pixels of a tiny model's input: more than the whole view and one tile, less than its processor's own limit.
BUDGET = 24_000
FIXED = {"llava", "llava_padded", "llava_siglip", "vipllava", "gemma3", "paligemma", "paligemma2"}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    @cache
    def loaded(name: str) -> VLM:
        folder = vlm_families.saved(name, tmp_path_factory.mktemp(name))
        return VLM.load(folder, device="cpu", pixels=BUDGET)

    return loaded


def shown(vlm: VLM, size: pixel_budget.Size) -> tuple[int, int]:
    """Pixels that the vision tower is given of an image, and the tokens that it makes of them."""
    inputs = vlm.inputs(np.zeros((*size, 3), np.uint8), "list the objects")
    tokens = int((inputs["input_ids"] == vlm.model.config.image_token_id).sum())
    if "image_grid_thw" in inputs:
        patch = vlm.model.config.vision_config.patch_size
        return int(inputs["image_grid_thw"].prod()) * patch**2, tokens
    return inputs["pixel_values"].numel() // 3, tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", vlm_families.BUILDERS)
def test_a_photograph_stays_within_the_budget(load: Load, name: str) -> None:
    vlm = load(name)
    for size in PHOTO:
        pixels, tokens = shown(vlm, size)
        assert 0 < pixels <= BUDGET
        assert tokens > 0
    pixels, tokens = shown(vlm, PHOTO[0])
    fewer, less = shown(vlm.smaller(), PHOTO[0])
    if name in FIXED:
        assert (fewer, less) == (pixels, tokens)
    else:
        assert (fewer < pixels, less < tokens) == (True, True)


# Published sizes: width, inner width, heads, key heads, layers, SAM's bytes; GiB, and tokens as they come.
SIZES = {
    "gpu-8g": (2048, 11008, 16, 2, 36, 0.375e9, 12, 8),
    "gpu-24g": (3584, 18944, 28, 4, 28, 2.56e9, 16, 24),
}
VOCABULARY = 152_064


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [(3000, 4000), (4000, 6000)])
def test_a_photograph_fits_a_profiles_memory(name: str, size: pixel_budget.Size) -> None:
    """Arithmetic of bytes: weights, what is kept of each token, and the largest passing needs."""
    width, inner, heads, key_heads, layers, sam, sam_heads, memory = SIZES[name]
    profile = PROFILES[name]
    published = SimpleNamespace(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12_845_056})
    )
    config = SimpleNamespace(model_type="qwen2_5_vl")
    images = pixel_budget.bounded(published, config, profile.pixels).image_processor
    tokens = images.get_number_of_image_patches(*size) // 4
    assert tokens * 28**2 <= profile.pixels

    half = 2  # bytes of a number in half precision
    head = width // heads
    decoder = layers * (width * (heads + 2 * key_heads) * head + width**2 + 3 * width * inner)
    decoder_bytes = decoder * (0.5625 if profile.quantization == "4bit" else half)
    tables = VOCABULARY * width * half * (1 if name == "gpu-8g" else 2)
    tower = 0.67e9 * half
    kept = tokens * layers * (heads + 3 * key_heads) * head * half  # queries and keys, and the cache
    passing = max(
        tokens * half * (3 * inner + 4 * width),  # of one layer, while the prompt is read
        4 * tokens * (half * (3 * 3420 + 6 * 1280) + 3 * 2 * 14**2 * 6),  # of the tower, and its patches
        sam_heads * 4096**2 * 4 * 3,  # SAM's global attention
        4 * capture.BLOCK * 3 + 4 * tokens * layers * width,  # the flow
    )
    context = 0.6 * 2**30
    assert decoder_bytes + tables + tower + sam + kept + passing + context < 0.97 * memory * 2**30


@pytest.mark.parametrize("name", ["llava", "llava_padded", "vipllava"])
@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1), (60, 12_000), (12_000, 2000)])
def test_a_tower_of_one_square_makes_no_large_image_of_a_long_one(
    load: Load, name: str, size: pixel_budget.Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processors pad to a square of the longer side, or enlarge until the shorter one fills theirs."""
    vlm = load(name)
    images = vlm.processor.image_processor
    made: list[int] = []
    for step in ("pad_to_square", "resize"):
        if own := getattr(images, step, None):

            def spy(*args: Any, own: Any = own, **kwargs: Any) -> Any:
                result = own(*args, **kwargs)
                made.append(result.numel() // 3)
                return result

            monkeypatch.setattr(images, step, spy)
    if name != "llava_padded" and max(size) > pixel_budget.RATIO * min(size):
        with pytest.raises(ImageRefused, match=f"one side is more than {pixel_budget.RATIO} times the other"):
            shown(vlm, size)
        assert not made
        return
    shown(vlm, size)
    assert made
    assert all(pixels <= max(pixel_budget.SIDE**2, pixel_budget.RATIO * 64**2) for pixels in made)


def test_a_budget_leaves_the_processor_as_it_was(load: Load) -> None:
    vlm = load("qwen2_5_vl")
    limited = pixel_budget.bounded(vlm.processor, vlm.model.config, 4000)
    assert limited.image_processor.size.longest_edge == 4000
    assert vlm.processor.image_processor.size.longest_edge > 4000


def test_pixels_are_part_of_the_version_and_of_every_profile() -> None:
    one, other = choose(pixels=1_000_000), choose(pixels=2_000_000)
    assert version_of(one) != version_of(other)
    assert segmenter_version_of(one) == segmenter_version_of(other)
    assert all(1_000_000 <= profile.pixels <= 2_000_000 for profile in PROFILES.values())
