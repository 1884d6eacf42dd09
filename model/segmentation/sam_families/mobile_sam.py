"""MobileSAM (arXiv 2306.14289) is SAM with a TinyViT as image encoder, which timm has.

It differs from timm's tiny_vit_5m_224 in two things: the last stage keeps the grid, and SAM's neck follows.
"""

import re
from collections.abc import Mapping

from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

MARK = "image_encoder.patch_embed.seq.0.c.weight"  # only MobileSAM's checkpoint has it
_UNUSED = re.compile(r"attention_bias_idxs$|^image_encoder\.(norm_)?head\.")
_NAMES = (  # published -> timm's, one after the other
    (r"^image_encoder\.(?!neck)", "image_encoder.body."),
    (r"\.seq\.0\.", ".conv1."),
    (r"\.seq\.2\.", ".conv2."),
    (r"\.c\.weight$", ".conv.weight"),
    # The merging that ends a stage of the original begins the next one of timm's.
    (r"\.layers\.0\.downsample", ".stages.1.downsample"),
    (r"\.layers\.1\.downsample", ".stages.2.downsample"),
    (r"\.layers\.2\.downsample", ".stages.3.downsample"),
    (r"^(image_encoder.*)\.layers\.", r"\1.stages."),
)


class Encoder(nn.Module):
    """1024 x 1024 pixels -> (1, 256, 64, 64)."""

    img_size = 1024

    def __init__(self) -> None:
        super().__init__()
        from timm.models.tiny_vit import TinyVit  # seconds to import, and few need it

        self.body = TinyVit(embed_dims=(64, 128, 160, 320), num_heads=(2, 4, 5, 10), num_classes=0)
        self.body.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.body.head = nn.Identity()
        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, 1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            LayerNorm2d(256),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        encoded: Tensor = self.neck(self.body.stages(self.body.patch_embed(pixels)))
        return encoded


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published checkpoint under the names of segment-anything's Sam with an Encoder."""
    found = {}
    for name, value in weights.items():
        if not _UNUSED.search(name):
            for pattern, to in _NAMES:
                name = re.sub(pattern, to, name)
            found[name] = value
    return found
