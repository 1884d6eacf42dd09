"""Run SAMs of transformers: SAM, SAM-HQ, SAM 2 and 2.1, EdgeTAM, SAM 3 by clicks and by noun phrases."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from model.segmentation.sam_families.family import Tokens
from model.types import Image, ModelLoadError

TOKENS = 32  # of a noun phrase, truncated and padded, as in Sam3Processor
# Noun phrases in one call of the detector (docs/decisions/0011-sam-3-by-concept.md).
PHRASES, PHRASES_CPU = 8, 1


class TransformersSam:
    """SAM of the first generation; subclasses override the differences of the others."""

    stretched = ends_boxes = False

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self._processor = model.eval(), processor
        self.side = int(model.prompt_encoder.input_image_size)
        self.device = model.device
        with torch.inference_mode():
            self._position = model.get_image_wide_positional_embeddings()
        self.low = 4 * int(self._position.shape[-1])

    def features(self, image: Image) -> dict[str, Tensor]:
        return self._named(self.model.get_image_embeddings(self._pixels(image)))

    def decode(
        self, features: Mapping[str, Tensor], prompts: Tokens, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        encoder, count = self.model.prompt_encoder, len(prompts.points)
        places = encoder.shared_embedding(prompts.points[None] + 0.5, (self.side, self.side))[0]
        sparse = prompts.embedded(places, self._kinds())
        _, dense = encoder(input_points=None, input_labels=None, input_boxes=None, input_masks=prompts.masks)
        # Prompts with masks are passed as images of one prompt each, since the mask is added to the image.
        images = 1 if prompts.masks is None else count
        logits, quality, *_ = self.model.mask_decoder(
            image_embeddings=features["image"].expand(images, -1, -1, -1),
            image_positional_embeddings=self._position.expand(images, -1, -1, -1),
            sparse_prompt_embeddings=sparse.reshape(images, -1, *sparse.shape[1:]),
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            **self._more(features, images),
        )
        return logits.flatten(0, 1), quality.flatten(0, 1)

    def _pixels(self, image: Image) -> Tensor:
        # Without the format, a picture of three rows would be taken for three channels.
        made = self._processor(image, input_data_format="channels_last", return_tensors="pt")
        pixels: Tensor = made["pixel_values"].to(self.device)
        return pixels

    def _named(self, encoded: Any) -> dict[str, Tensor]:
        return {"image": encoded}

    def _more(self, features: Mapping[str, Tensor], images: int) -> dict[str, Any]:
        return {}

    def _kinds(self) -> Tensor:
        encoder = self.model.prompt_encoder
        return torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embed)])


class SamHQ(TransformersSam):
    """SAM-HQ: the decoder also sees the encoder's first global layer; masks are SAM's plus its own."""

    def _named(self, encoded: Any) -> dict[str, Tensor]:
        return {"image": encoded[0], "early": encoded[1][0]}

    def _more(self, features: Mapping[str, Tensor], images: int) -> dict[str, Any]:
        return {"intermediate_embeddings": [features["early"]], "hq_token_only": False}


class Sam2(TransformersSam):
    """SAM 2, 2.1 and EdgeTAM: a stretched image, and finer features for the decoder."""

    stretched = ends_boxes = True

    def _named(self, encoded: Any) -> dict[str, Tensor]:
        return dict(zip(("fine", "middle", "image"), encoded, strict=True))

    def _more(self, features: Mapping[str, Tensor], images: int) -> dict[str, Any]:
        finer = [features[name].expand(images, -1, -1, -1) for name in ("fine", "middle")]
        return {"high_resolution_features": finer}

    def _kinds(self) -> Tensor:
        encoder = self.model.prompt_encoder
        return torch.cat([encoder.not_a_point_embed.weight, encoder.point_embed.weight])


class Sam3Tracker(Sam2):
    """SAM 3 by clicks and boxes."""

    def features(self, image: Image) -> dict[str, Tensor]:
        return self._levels(self.model.get_image_features(self._pixels(image), return_dict=True))

    def _levels(self, seen: Any) -> dict[str, Tensor]:
        # get_image_embeddings of transformers 5.23 adds the vector for "no earlier frame" to a fourth level,
        # which nothing reads. The authors' code adds it to the third, and so does transformers' video model.
        sizes = self.model.backbone_feature_sizes
        *finer, coarse = seen.fpn_hidden_states[: len(sizes)]  # (h w, 1, C)
        levels = [*finer, coarse + self.model.no_memory_embedding]
        return self._named(
            [level.permute(1, 2, 0).unflatten(2, size) for level, size in zip(levels, sizes, strict=True)]
        )


class Sam3(Sam3Tracker):
    """SAM 3 by clicks and noun phrases: tracker and detector share one image encoder."""

    def __init__(self, model: Any, processor: Any, detector: Any, tokenizer: Any) -> None:
        super().__init__(model, processor)
        self.detector, self._tokenizer = detector.eval(), tokenizer

    def features(self, image: Image) -> dict[str, Tensor]:
        # Keep the encoder's output: the levels of the detector's own neck are five times as large.
        seen = self.model.get_image_features(self._pixels(image), return_dict=True)
        return {**self._levels(seen), "trunk": seen.last_hidden_state}

    def concepts(
        self, features: Mapping[str, Tensor], phrases: Sequence[str], boxes: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        height, width = self.model.backbone_feature_sizes[-1]
        trunk = features["trunk"].view(1, height, width, -1).permute(0, 3, 1, 2)
        levels, places = self.detector.vision_encoder.neck(trunk)
        chunk = PHRASES_CPU if self.device.type == "cpu" else PHRASES
        for start in range(0, len(phrases), chunk):
            some = slice(start, start + chunk)
            words = self._tokenizer(
                list(phrases[some]),
                padding="max_length",
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            ).to(self.device)
            expanded = [
                tuple(t.expand(len(words["input_ids"]), -1, -1, -1) for t in tensors)
                for tensors in (levels, places)
            ]
            output = self.detector(
                vision_embeds=Sam3VisionEncoderOutput(
                    fpn_hidden_states=expanded[0], fpn_position_encoding=expanded[1]
                ),
                input_ids=words["input_ids"],
                attention_mask=words["attention_mask"],
                input_boxes=None if boxes is None else boxes[some, None],
            )
            # As post_process_instance_segmentation: times the probability that there is any such object.
            scores = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
            yield from zip(output.pred_masks, scores, strict=True)


# By config.json's model_type. Published are video models, of which a still image needs a part. Classes are
# names, since transformers imports each at its first use.
KINDS: dict[str, tuple[type[TransformersSam], str, str]] = {
    "sam": (TransformersSam, "SamModel", "SamImageProcessor"),
    "sam_hq": (SamHQ, "SamHQModel", "SamImageProcessor"),
    **dict.fromkeys(("sam2", "sam2_video"), (Sam2, "Sam2Model", "Sam2ImageProcessor")),
    **dict.fromkeys(
        ("sam3_tracker", "sam3_tracker_video", "sam3_video"),
        (Sam3Tracker, "Sam3TrackerModel", "Sam3ImageProcessor"),
    ),
    **dict.fromkeys(("edgetam", "edgetam_video"), (Sam2, "EdgeTamModel", "Sam2ImageProcessor")),
}
WITH_DETECTOR = "sam3_video"  # the kind that holds SAM 3's detector beside its tracker


def load(path: Path, model_type: str, device: str, *, concepts: bool = False) -> TransformersSam:
    """Load a folder of transformers, with `concepts` also SAM 3's detector, of a model WITH_DETECTOR.

    Raises ModelLoadError, and what transformers raises.
    """
    family, model_class, processor_class = KINDS[model_type]
    processor = getattr(transformers, processor_class).from_pretrained(path)
    model = _weights(path, model_class)
    if concepts:
        detector = _weights(path, "Sam3Model")
        detector.vision_encoder.backbone = model.vision_encoder.backbone  # the same weights, once
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        sam: TransformersSam = Sam3(model.to(device), processor, detector.to(device), tokenizer)
    else:
        sam = family(model.to(device), processor)
    sizes = {n for n in dict(processor.size).values() if n}
    if sizes != {sam.side}:
        raise ModelLoadError(
            f"{path}: the model takes images of {sam.side} pixels, its processor makes {sizes}"
        )
    return sam


def _weights(path: Path, model_class: str) -> Any:
    model, report = getattr(transformers, model_class).from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if report["missing_keys"]:  # transformers has filled them with random numbers
        raise ModelLoadError(f"the segmenter {path} lacks weights, such as {min(report['missing_keys'])}")
    return model
