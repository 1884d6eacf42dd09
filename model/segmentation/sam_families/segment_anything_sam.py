"""Run SAM by the segment-anything package: ViT-B, L and H, the built-in model, and MobileSAM."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from model.segmentation.sam_families import mobile_sam
from model.segmentation.sam_families.family import Tokens
from model.types import Image, ModelLoadError
from model.weights import sam_checkpoints

# segment-anything's sizes by the width of the image encoder (its build_sam.py).
_PUBLISHED: dict[int, dict[str, Any]] = {
    768: {"depth": 12, "num_heads": 12, "global_attn_indexes": [2, 5, 8, 11]},
    1024: {"depth": 24, "num_heads": 16, "global_attn_indexes": [5, 11, 17, 23]},
    1280: {"depth": 32, "num_heads": 16, "global_attn_indexes": [7, 15, 23, 31]},
}
_PATCHES = "image_encoder.patch_embed.proj.weight"  # occurs in every SAM of the package
PUBLISHED_REST = {
    "image_size": 1024, "patch_size": 16, "window_size": 14, "use_rel_pos": True,
    "prompt_embed_dim": 256, "decoder_mlp_dim": 2048, "decoder_heads": 8, "iou_head_hidden_dim": 256,
}  # fmt: skip


def build_sam(config: Mapping[str, Any], encoder: torch.nn.Module | None = None) -> Sam:
    """Build segment-anything's model from a config such as model/builtin/segmenter/config.json."""
    side = config["image_size"] // config["patch_size"]
    width = config["prompt_embed_dim"]
    same = ("depth", "embed_dim", "num_heads", "patch_size", "use_rel_pos", "window_size")
    return Sam(
        image_encoder=encoder
        or ImageEncoderViT(
            **{name: config[name] for name in same},
            img_size=config["image_size"],
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            global_attn_indexes=tuple(config["global_attn_indexes"]),
            out_chans=width,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(side, side),
            input_image_size=(config["image_size"], config["image_size"]),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(2, width, config["decoder_heads"], config["decoder_mlp_dim"]),
            iou_head_hidden_dim=config["iou_head_hidden_dim"],
        ),
    )


def load(file: Path, config: Mapping[str, Any], device: str) -> "SegmentAnythingSam":
    """Load weights (.pth, .pt, .safetensors). An empty `config` means a published size.

    Raises ModelLoadError, and what torch raises.
    """
    if not file.is_file():
        raise ModelLoadError(
            f"the segmenter's weights {file} do not exist: name one of "
            f"{', '.join(sam_checkpoints.CHECKPOINTS)}, a hub id, a file of that kind, or a folder with "
            "config.json and model.safetensors"
        )
    weights = _weights(file)
    encoder = None
    if mobile_sam.MARK in weights:
        weights, encoder, config = mobile_sam.renamed(weights), mobile_sam.Encoder(), PUBLISHED_REST
    elif not config:
        width = len(weights[_PATCHES])
        if width not in _PUBLISHED:
            raise ModelLoadError(
                f"the image encoder in {file} is {width} wide, those of SAM ViT-B, L and H are "
                f"{', '.join(map(str, _PUBLISHED))}: give it a folder with config.json"
            )
        config = {**PUBLISHED_REST, **_PUBLISHED[width], "embed_dim": width}
    sam = build_sam(config, encoder)
    sam.load_state_dict({key: value.float() for key, value in weights.items()})
    return SegmentAnythingSam(sam.to(device))


def _weights(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == ".safetensors":
        weights = load_file(file)
    else:
        sam_checkpoints.verify(file)
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # torch's message advises to load the file's code as well
            raise ModelLoadError(
                f"{file} is not a checkpoint of segment-anything: PyTorch finds no weights in it, or more "
                "than weights, such as code"
            ) from error
    if not isinstance(weights, Mapping) or not {_PATCHES, mobile_sam.MARK} & weights.keys():
        raise ModelLoadError(
            f"{file} is not a checkpoint of segment-anything: it has no {_PATCHES}; SAM-HQ, SAM 2, SAM 3 and "
            "EdgeTAM are loaded by hub id, such as facebook/sam2.1-hiera-tiny, or from transformers' folder"
        )
    return weights


class SegmentAnythingSam:
    """A `SamFamily` of the package segment-anything."""

    stretched = ends_boxes = False

    def __init__(self, sam: Sam) -> None:
        self.sam = sam.eval()
        self.side = int(sam.image_encoder.img_size)
        self.low = int(sam.prompt_encoder.mask_input_size[0])
        self.device = sam.device
        self._resize = ResizeLongestSide(self.side)
        with torch.inference_mode():
            self._position = sam.prompt_encoder.get_dense_pe()

    def features(self, image: Image) -> dict[str, Tensor]:
        scaled = np.ascontiguousarray(self._resize.apply_image(image))
        pixels = torch.from_numpy(scaled).permute(2, 0, 1)[None].to(self.device)
        return {"image": self.sam.image_encoder(self.sam.preprocess(pixels.float()))}

    def decode(
        self, features: Mapping[str, Tensor], prompts: Tokens, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        _, dense = self.sam.prompt_encoder(points=None, boxes=None, masks=prompts.masks)
        sparse = embed(self.sam, prompts)
        logits, quality = decode(self.sam, features["image"] + dense, self._position, sparse)
        levels = slice(1, None) if multimask else slice(1)
        return logits[:, levels], quality[:, levels]


def embed(sam: Sam, prompts: Tokens) -> Tensor:
    """Return PromptEncoder's sparse embedding of any mix of points and boxes: (n, k, C)."""
    encoder = sam.prompt_encoder
    places = encoder.pe_layer.forward_with_coords(prompts.points + 0.5, encoder.input_image_size)
    kinds = torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)])
    return prompts.embedded(places, kinds)


def decode(sam: Sam, source: Tensor, position: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    """Run MaskDecoder.predict_masks without its copies: four logits (n, 4, h, w) and IoU (n, 4) per prompt.

    `source` (n or 1, C, H, W) is the image plus the prompts' masks, `position` (n or 1, C, H, W) the position
    encoding. They have one row if all prompts share them, so that the first layer computes one row.
    """
    decoder, count = sam.mask_decoder, len(sparse)
    _, width, h, w = source.shape
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).to(sparse.dtype)
    states, mixed = decoder.transformer(source, position, torch.cat([own.expand(count, -1, -1), sparse], 1))
    fine = decoder.output_upscaling(mixed.transpose(1, 2).reshape(count, width, h, w))
    heads = [mlp(states[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)]
    logits = torch.einsum("nkc,nchw->nkhw", torch.stack(heads, 1), fine)
    return logits, decoder.iou_prediction_head(states[:, 0])
