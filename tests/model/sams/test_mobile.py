import re
from pathlib import Path
from typing import Any

import torch

from model.sams import mobile, original
from model.segmenter import Segmenter

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
        found = mobile.renamed({f"image_encoder.{name}": torch.zeros(1)})
        assert list(found) == ([f"image_encoder.{to}"] if to else [])


def test_mobile_sam_is_recognised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = original.build_sam(original.PUBLISHED_REST, mobile.Encoder()).state_dict()
    torch.save(published(made), tmp_path / "own.pt")
    family: Any = Segmenter.load(str(tmp_path / "own.pt"), device="cpu")._family
    loaded = family.sam.state_dict()
    assert loaded.keys() == made.keys()
    assert all(torch.equal(weight, made[name]) for name, weight in loaded.items())
    with torch.inference_mode():
        assert family.sam.image_encoder(torch.zeros(1, 3, 128, 128)).shape == (1, 256, 8, 8)
