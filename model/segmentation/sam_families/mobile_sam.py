"""Define MobileSAM's image encoder (arXiv 2306.14289): timm's TinyViT, followed by SAM's neck.

Unlike timm's tiny_vit_5m_224, its last stage keeps the grid's size.
"""

import re
from collections.abc import Mapping

from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

MARK = "image_encoder.patch_embed.seq.0.c.weight"  # occurs in MobileSAM's checkpoint only
_UNUSED = re.compile(r"attention_bias_idxs$|^image_encoder\.(norm_)?head\.")
_NAMES = (  # published names -> timm's, applied in turn
    (r"^image_encoder\.(?!neck)", "image_encoder.body."),
    (r"\.seq\.0\.", ".conv1."),
    (r"\.seq\.2\.", ".conv2."),
    (r"\.c\.weight$", ".conv.weight"),
    # Downsampling ends a stage in the original, and begins the next stage in timm.
    (r"\.layers\.0\.downsample", ".stages.1.downsample"),
    (r"\.layers\.1\.downsample", ".stages.2.downsample"),
    (r"\.layers\.2\.downsample", ".stages.3.downsample"),
    (r"^(image_encoder.*)\.layers\.", r"\1.stages."),
)


class Encoder(nn.Module):
    """Encodes float (1, 3, 1024, 1024) to (1, 256, 64, 64)."""

    img_size = 1024

    def __init__(self) -> None:
        super().__init__()
        from timm.models.tiny_vit import TinyVit  # takes seconds to import

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
    """Rename the published checkpoint's weights to those of segment-anything's Sam with an Encoder."""
    weights_by_name = {}
    for name, value in weights.items():
        if not _UNUSED.search(name):
            for pattern, to in _NAMES:
                name = re.sub(pattern, to, name)
            weights_by_name[name] = value
    return weights_by_name
