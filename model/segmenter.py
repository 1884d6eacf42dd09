"""Segment anything: encode an image once, decode prompts into masks. Stateless.

There is no current image: `embedding = encode(image)`, `decode(embedding, prompts)`, so that no two
callers can ever be answered with each other's image.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from model import download
from model.profiles import DEVICE_MAPS
from model.types import Image, Mask, ModelLoadError, Prompt, PromptError

# segment-anything's own sizes, by the width of the image encoder (build_sam.py of that package).
_PUBLISHED: dict[int, dict[str, Any]] = {
    768: {"depth": 12, "num_heads": 12, "global_attn_indexes": [2, 5, 8, 11]},
    1024: {"depth": 24, "num_heads": 16, "global_attn_indexes": [5, 11, 17, 23]},
    1280: {"depth": 32, "num_heads": 16, "global_attn_indexes": [7, 15, 23, 31]},
}
_PUBLISHED_REST = {
    "image_size": 1024, "patch_size": 16, "window_size": 14, "use_rel_pos": True,
    "prompt_embed_dim": 256, "decoder_mlp_dim": 2048, "decoder_heads": 8, "iou_head_hidden_dim": 256,
}  # fmt: skip
# A mask given as geometry becomes logits of this height: well inside the range of SAM's own answers.
MASK_LOGIT = 8.0


@dataclass(frozen=True, eq=False)
class Embedding:
    """An encoded image. Immutable; all that decoding needs."""

    features: Tensor  # (1, C, h, w) on the model's device
    size: tuple[int, int]  # H, W of the image
    scaled: tuple[int, int]  # H, W of the image on the encoder's square, before padding


@dataclass(frozen=True, eq=False)
class Masks:
    """The answers to one prompt: k is 3 levels (multimask) or 1."""

    masks: NDArray[np.bool_]  # (k, H, W) in image pixels
    predicted_iou: NDArray[np.float32]  # (k,) clipped to 0..1
    logits: NDArray[np.float32]  # (k, h, w) low resolution, of the padded square


def build_sam(config: Mapping[str, Any]) -> Sam:
    """segment-anything's model for a config such as model/builtin/segmenter/config.json."""
    side = config["image_size"] // config["patch_size"]
    width = config["prompt_embed_dim"]
    return Sam(
        image_encoder=ImageEncoderViT(
            depth=config["depth"],
            embed_dim=config["embed_dim"],
            img_size=config["image_size"],
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=config["num_heads"],
            patch_size=config["patch_size"],
            use_rel_pos=config["use_rel_pos"],
            global_attn_indexes=tuple(config["global_attn_indexes"]),
            window_size=config["window_size"],
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
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=width,
                mlp_dim=config["decoder_mlp_dim"],
                num_heads=config["decoder_heads"],
            ),
            iou_head_hidden_dim=config["iou_head_hidden_dim"],
        ),
    )


class Segmenter:
    def __init__(self, sam: Sam) -> None:
        self._sam = sam.eval()
        self._resize = ResizeLongestSide(sam.image_encoder.img_size)

    @classmethod
    def load(cls, name: str, *, device: str, folder: Path = download.FOLDER) -> "Segmenter":
        """Load a folder (config.json, model.safetensors), a SAM file (.pth, .safetensors) or a published
        one by its bare name, which is fetched into `folder` if need be.

        Raises ModelLoadError with one sentence on what is wrong.
        """
        path = download.sam(name, folder)
        file = path / "model.safetensors" if path.is_dir() else path
        if not file.is_file():
            raise ModelLoadError(
                f"the segmenter's weights {file} do not exist: set VLSAM_SAM to one of "
                f"{', '.join(download.CHECKPOINTS)}, to a file of that kind, or to a folder with config.json "
                "and model.safetensors"
            )
        if file.suffix != ".safetensors":
            download.check(file)
        try:
            if file.suffix == ".safetensors":
                weights = load_file(file)
            else:
                weights = torch.load(file, map_location="cpu", weights_only=True)
            if path.is_dir():
                config = json.loads((path / "config.json").read_text())
            else:
                embed_dim = int(weights["image_encoder.patch_embed.proj.weight"].shape[0])
                config = {**_PUBLISHED_REST, **_PUBLISHED[embed_dim], "embed_dim": embed_dim}
            sam = build_sam(config)
            sam.load_state_dict({key: value.float() for key, value in weights.items()})
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelLoadError(f"{file} is no checkpoint of segment-anything: {reason}") from error
        if device in DEVICE_MAPS:  # too small to be spread
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(sam.to(device))

    @torch.inference_mode()
    def encode(self, image: Image) -> Embedding:
        """Encode an image (H, W, 3) once for all its prompts."""
        scaled = self._resize.apply_image(image)
        pixels = torch.from_numpy(np.ascontiguousarray(scaled)).permute(2, 0, 1)[None]
        square = self._sam.preprocess(pixels.to(self._sam.device).float())
        height, width = image.shape[:2]
        return Embedding(self._sam.image_encoder(square), (height, width), (scaled.shape[0], scaled.shape[1]))

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: Sequence[Prompt], *, multimask: bool) -> list[Masks]:
        """Masks for every prompt, in order; prompts of one shape go through the decoder together.

        Raises PromptError for a prompt without points and box, or with numbers that are not finite.
        """
        groups: dict[tuple[int, bool, bool], list[int]] = {}
        for index, prompt in enumerate(prompts):
            _check(prompt)
            hint = prompt.mask is not None or prompt.logits is not None
            groups.setdefault((len(prompt.points), prompt.box is not None, hint), []).append(index)
        found: dict[int, Masks] = {}
        for members in groups.values():
            answers = self._decode_alike(embedding, [prompts[i] for i in members], multimask)
            found.update(zip(members, answers, strict=True))
        return [found[i] for i in range(len(prompts))]

    def _decode_alike(self, embedding: Embedding, prompts: Sequence[Prompt], multimask: bool) -> list[Masks]:
        sam, device, size = self._sam, self._sam.device, embedding.size
        points = boxes = hints = None
        if len(prompts[0].points):
            xy = np.stack([self._resize.apply_coords(p.points, size) for p in prompts])
            labels = np.stack([p.labels for p in prompts])
            points = (
                torch.as_tensor(xy, dtype=torch.float32, device=device),
                torch.as_tensor(labels, dtype=torch.float32, device=device),
            )
        if prompts[0].box is not None:
            corners = np.array([p.box for p in prompts], np.float32)
            boxes = torch.as_tensor(
                self._resize.apply_boxes(corners, size), dtype=torch.float32, device=device
            )
        if prompts[0].mask is not None or prompts[0].logits is not None:
            low = [p.logits if p.logits is not None else self._logits_of(embedding, p) for p in prompts]
            hints = torch.as_tensor(np.stack(low)[:, None], device=device)
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=hints)
        logits, quality = sam.mask_decoder(
            image_embeddings=embedding.features,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        quality = quality.clamp(0, 1).cpu().numpy()
        return [
            Masks((self._full(embedding, each) > 0).cpu().numpy(), good, each.cpu().numpy())
            for each, good in zip(logits, quality, strict=True)
        ]

    def _full(self, embedding: Embedding, logits: Tensor) -> Tensor:
        """Low-resolution logits (k, h, w) -> (k, H, W): without the padding, at image size."""
        side = self._sam.image_encoder.img_size
        square = F.interpolate(logits[None], (side, side), mode="bilinear", align_corners=False)
        height, width = embedding.scaled
        inside = square[..., :height, :width]
        return F.interpolate(inside, embedding.size, mode="bilinear", align_corners=False)[0]

    def _logits_of(self, embedding: Embedding, prompt: Prompt) -> NDArray[np.float32]:
        """A mask in image pixels as logits of the padded square, soft at its edge."""
        mask = cast(Mask, prompt.mask)
        if mask.shape != embedding.size:
            raise PromptError(f"the prompt's mask is {mask.shape}, the image {embedding.size}")
        return self.hint(embedding, mask.astype(np.float32))

    def hint(self, embedding: Embedding, share: NDArray[np.float32]) -> NDArray[np.float32]:
        """How much of the object is where, 0 to 1 on any grid over the image, as logits for a prompt."""
        h, w = self._sam.prompt_encoder.mask_input_size
        side = self._sam.image_encoder.img_size
        height, width = (max(1, round(n * h / side)) for n in embedding.scaled)
        # Area-wise downwards; on a coarse grid the cells' edges would show, so smoothly upwards.
        how = cv2.INTER_AREA if share.shape[0] > height else cv2.INTER_LINEAR
        share = cv2.resize(share, (width, height), interpolation=how)
        low = np.full((h, w), -MASK_LOGIT, np.float32)
        low[:height, :width] = (2 * share - 1) * MASK_LOGIT
        return low


def _check(prompt: Prompt) -> None:
    if not len(prompt.points) and prompt.box is None:
        raise PromptError("a prompt needs at least one point or a box")
    if prompt.points.shape != (len(prompt.labels), 2):
        raise PromptError(f"{prompt.points.shape} points do not fit {len(prompt.labels)} labels")
    if not np.isfinite(prompt.points).all() or not np.isfinite(prompt.box or (0.0,)).all():
        raise PromptError("a prompt holds a number that is not finite")
    if not np.isin(prompt.labels, (0, 1)).all():
        raise PromptError("point labels are 1 (inside) or 0 (outside)")
