"""SAMs of transformers: SAM, SAM-HQ, SAM 2 and 2.1, SAM 3's tracker, EdgeTAM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from model.sams.family import Tokens
from model.types import Image, ModelLoadError


class HubSam:
    """The first generation; what the others do otherwise stands below."""

    stretched = ends_boxes = False

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model.eval(), processor
        self.side = int(model.prompt_encoder.input_image_size)
        self.device = model.device
        with torch.inference_mode():
            self._position = model.get_image_wide_positional_embeddings()
        self.low = 4 * int(self._position.shape[-1])

    def features(self, image: Image) -> dict[str, Tensor]:
        # Otherwise a picture of three rows would be taken for three channels.
        made = self._processor(image, input_data_format="channels_last", return_tensors="pt")
        return self._named(self._model.get_image_embeddings(made["pixel_values"].to(self.device)))

    def decode(
        self, features: Mapping[str, Tensor], prompts: Tokens, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        encoder, count = self._model.prompt_encoder, len(prompts.points)
        places = encoder.shared_embedding(prompts.points[None] + 0.5, (self.side, self.side))[0]
        sparse = prompts.embedded(places, self._kinds())
        _, dense = encoder(input_points=None, input_labels=None, input_boxes=None, input_masks=prompts.masks)
        # With masks no two prompts see the same image: to the library they are images of one prompt each.
        images = 1 if prompts.masks is None else count
        logits, quality, *_ = self._model.mask_decoder(
            image_embeddings=features["image"].expand(images, -1, -1, -1),
            image_positional_embeddings=self._position.expand(images, -1, -1, -1),
            sparse_prompt_embeddings=sparse.reshape(images, -1, *sparse.shape[1:]),
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            **self._more(features, images),
        )
        return logits.flatten(0, 1), quality.flatten(0, 1)

    def _named(self, encoded: Any) -> dict[str, Tensor]:
        return {"image": encoded}

    def _more(self, features: Mapping[str, Tensor], images: int) -> dict[str, Any]:
        return {}

    def _kinds(self) -> Tensor:
        encoder = self._model.prompt_encoder
        return torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embed)])


class HighQuality(HubSam):
    """SAM-HQ's decoder also sees the encoder's first global layer; its masks are SAM's plus its own."""

    def _named(self, encoded: Any) -> dict[str, Tensor]:
        return {"image": encoded[0], "early": encoded[1][0]}

    def _more(self, features: Mapping[str, Tensor], images: int) -> dict[str, Any]:
        return {"intermediate_embeddings": [features["early"]], "hq_token_only": False}


class Second(HubSam):
    """SAM 2 and what is built like it: a stretched image, and finer features for the decoder."""

    stretched = ends_boxes = True

    def _named(self, encoded: Any) -> dict[str, Tensor]:
        return dict(zip(("fine", "middle", "image"), encoded, strict=True))

    def _more(self, features: Mapping[str, Tensor], images: int) -> dict[str, Any]:
        finer = [features[name].expand(images, -1, -1, -1) for name in ("fine", "middle")]
        return {"high_resolution_features": finer}

    def _kinds(self) -> Tensor:
        encoder = self._model.prompt_encoder
        return torch.cat([encoder.not_a_point_embed.weight, encoder.point_embed.weight])


_SAM2 = (Second, "Sam2Model", "Sam2ImageProcessor")
_SAM3 = (Second, "Sam3TrackerModel", "Sam3ImageProcessor")
_EDGE = (Second, "EdgeTamModel", "Sam2ImageProcessor")
# By config.json's model_type. What is published are the video models; a still image needs a part of each.
# The classes go by name, for transformers imports each when it is asked for.
KINDS: dict[str, tuple[type[HubSam], str, str]] = {
    "sam": (HubSam, "SamModel", "SamImageProcessor"),
    "sam_hq": (HighQuality, "SamHQModel", "SamImageProcessor"),
    "sam2": _SAM2,
    "sam2_video": _SAM2,
    "sam3_tracker": _SAM3,
    "sam3_tracker_video": _SAM3,
    "sam3_video": _SAM3,
    "edgetam": _EDGE,
    "edgetam_video": _EDGE,
}


def load(path: Path, model_type: str, device: str) -> HubSam:
    """Load a folder of transformers'. Raises ModelLoadError, and what transformers raises."""
    if model_type not in KINDS:
        raise ModelLoadError(
            f"{path} holds a model of the kind {model_type!r}, which is no segmenter known here: take one of "
            f"{', '.join(KINDS)}"
        )
    family, model_class, processor_class = KINDS[model_type]
    processor = getattr(transformers, processor_class).from_pretrained(path)
    model, report = getattr(transformers, model_class).from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if report["missing_keys"]:  # transformers has filled them with random numbers
        raise ModelLoadError(f"the segmenter {path} lacks weights, such as {min(report['missing_keys'])}")
    sam = family(model.to(device), processor)
    made = {n for n in dict(processor.size).values() if n}
    if made != {sam.side}:
        raise ModelLoadError(
            f"{path}: the model takes images of {sam.side} pixels, its processor makes {made}"
        )
    return sam
