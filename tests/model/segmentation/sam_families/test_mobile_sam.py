import re
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from model.segmentation.sam_families import mobile_sam, segment_anything_sam
from model.segmentation.segmenter import Segmenter
from model.types import Prompt

# Names of the encoder in mobile_sam.pt, and in timm's TinyVit or the neck; three stay out.
NAMES = {
    "patch_embed.seq.2.bn.running_var": "body.patch_embed.conv2.bn.running_var",
    "layers.0.blocks.1.conv3.c.weight": "body.stages.0.blocks.1.conv3.conv.weight",
    "layers.1.downsample.conv2.c.weight": "body.stages.2.downsample.conv2.conv.weight",
    "layers.3.blocks.0.attn.attention_biases": "body.stages.3.blocks.0.attn.attention_biases",
    "layers.2.blocks.5.local_conv.bn.bias": "body.stages.2.blocks.5.local_conv.bn.bias",
    "neck.1.weight": "neck.1.weight",
    "norm_head.weight": None,
    "head.bias": None,
    "layers.1.blocks.0.attn.attention_bias_idxs": None,
}


def published(weights: dict[str, Any]) -> dict[str, Any]:
    """A state dict of ours under the names of mobile_sam.pt."""
    found = {}
    for name, value in weights.items():
        name = name.replace("image_encoder.body.", "image_encoder.")
        name = re.sub(r"patch_embed\.conv([12])", lambda m: f"patch_embed.seq.{2 * int(m[1]) - 2}", name)
        name = re.sub(r"stages\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        found[name.replace(".stages.", ".layers.").replace(".conv.weight", ".c.weight")] = value
    return found


def test_published_names_find_their_place() -> None:
    for name, to in NAMES.items():
        found = mobile_sam.renamed({f"image_encoder.{name}": torch.zeros(1)})
        assert list(found) == ([f"image_encoder.{to}"] if to else [])


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    torch.manual_seed(0)
    weights: dict[str, Any] = segment_anything_sam.build_sam(
        segment_anything_sam.PUBLISHED_REST, mobile_sam.Encoder()
    ).state_dict()
    return weights


@pytest.fixture(scope="module")
def loaded(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    file = tmp_path_factory.mktemp("mobile") / "own.pt"
    torch.save(published(made), file)
    return Segmenter.load(str(file), device="cpu")


@pytest.mark.slow
def test_mobile_sam_is_recognised(made: dict[str, Any], loaded: Segmenter) -> None:
    family: Any = loaded.family
    weights = family.sam.state_dict()
    assert weights.keys() == made.keys()
    assert all(torch.equal(weight, made[name]) for name, weight in weights.items())
    with torch.inference_mode():
        assert family.sam.image_encoder(torch.zeros(1, 3, 128, 128)).shape == (1, 256, 8, 8)


@pytest.mark.slow
def test_decode_equals_segment_anythings_predictor(loaded: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    family: Any = loaded.family
    predictor = SamPredictor(family.sam)
    predictor.set_image(image)
    prompt = Prompt.of((70, 40, 1), (25, 70.5, 0), box=(20.0, 10.0, 100.5, 80.0))
    masks, quality, logits = predictor.predict(prompt.points, prompt.labels, np.array(prompt.box))
    (ours,) = loaded.decode(loaded.encode(image), [prompt], multimask=True)
    assert ours.logits.std() > 0.01  # weights that answer, not a flat sheet
    np.testing.assert_allclose(ours.logits, logits, atol=1e-5)
    np.testing.assert_allclose(ours.predicted_iou, quality.clip(0, 1), atol=1e-5)
    np.testing.assert_array_equal(ours.masks, masks)
