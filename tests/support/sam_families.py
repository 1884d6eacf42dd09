"""Tiny random models of every family in sam_families/transformers_sam.py: real architectures and processors.

A family's entry in BUILDERS makes the two; `saved` writes them where Segmenter.load finds them.
"""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from safetensors.torch import save_file

SIDE = 64
PROMPTS = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
DECODER = {"hidden_size": 32, "mlp_dim": 48, "num_attention_heads": 2, "iou_head_hidden_dim": 24}
LEVELS = [[16, 16], [8, 8], [4, 4]]
MEMORY = {
    "image_size": SIDE, "memory_attention_hidden_size": 32, "memory_attention_num_layers": 1,
    "memory_encoder_hidden_size": 32, "memory_encoder_output_channels": 8, "mask_downsampler_embed_dim": 32,
    "memory_fuser_embed_dim": 32, "memory_fuser_intermediate_dim": 32, "memory_fuser_num_layers": 1,
    "memory_attention_rope_feat_sizes": [4, 4],
}  # fmt: skip
SQUARE = {"height": SIDE, "width": SIDE}
Built = tuple[Any, Any]  # model, processor


def first(high_quality: bool = False) -> Built:
    vision = {
        "hidden_size": 24, "output_channels": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 16, "global_attn_indexes": [1, 2], "window_size": 3,
        "num_pos_feats": 16, "mlp_dim": 32, "initializer_range": 0.02,
    }  # fmt: skip
    prompts = {**PROMPTS, "image_embedding_size": SIDE // 16}
    images = t.SamImageProcessor(size={"longest_edge": SIDE}, pad_size=SQUARE)
    parts = {"vision_config": vision, "prompt_encoder_config": prompts}
    if not high_quality:
        return t.SamModel(t.SamConfig(**parts, mask_decoder_config=DECODER)), t.SamProcessor(images)
    config = t.SamHQConfig(**parts, mask_decoder_config={**DECODER, "vit_dim": 24})
    return t.SamHQModel(config), t.SamHQProcessor(images)


def hiera() -> dict[str, Any]:
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 24, 32], "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 2, 2], "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [7, 7],
    }  # fmt: skip
    return {
        "backbone_config": backbone, "backbone_channel_list": [32, 24, 16, 8],
        "backbone_feature_sizes": LEVELS, "fpn_hidden_size": 32,
    }  # fmt: skip


def repvit() -> dict[str, Any]:
    backbone = t.TimmWrapperConfig.from_dict(
        {
            "architecture": "repvit_m1",
            "label_names": ["a", "b"],
            "num_classes": 2,
            "model_args": {
                "in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3],
                "embed_dim": [8, 12, 16, 24], "depth": [1, 1, 1, 1],
            },
        }
    )  # fmt: skip
    return {
        "backbone_config": backbone, "backbone_channel_list": [24, 16, 12, 8],
        "backbone_feature_sizes": LEVELS, "fpn_hidden_size": 32,
    }  # fmt: skip


def vit() -> dict[str, Any]:
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": 16, "window_size": 2,
        "global_attn_indexes": [1], "pretrain_image_size": 32,
    }  # fmt: skip
    return {
        "model_type": "sam3_vision_model", "backbone_config": backbone, "backbone_feature_sizes": LEVELS,
        "fpn_hidden_size": 32,
    }  # fmt: skip


def second(config: str, model: str, vision: Callable[[], dict[str, Any]], images: str) -> Built:
    made = getattr(t, config)(
        vision_config=vision(), prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER
    )
    processor = t.Sam3TrackerProcessor if "Sam3" in images else t.Sam2Processor
    return getattr(t, model)(made), processor(getattr(t, images)(size=SQUARE))


BUILDERS: dict[str, Callable[[], Built]] = {
    "sam": first,
    "sam_hq": lambda: first(True),
    "sam2": lambda: second("Sam2Config", "Sam2Model", hiera, "Sam2ImageProcessor"),
    "sam3_tracker": lambda: second("Sam3TrackerConfig", "Sam3TrackerModel", vit, "Sam3ImageProcessor"),
    "edgetam": lambda: second("EdgeTamConfig", "EdgeTamModel", repvit, "Sam2ImageProcessor"),
}


def video(config: str, model: str, vision: Callable[[], dict[str, Any]], images: str) -> Built:
    made = getattr(t, config)(
        vision_config=vision(), prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER, **MEMORY
    )
    return getattr(t, model)(made), getattr(t, images)(size=SQUARE)


def sam3_video() -> Built:
    """All of SAM 3, with a tokenizer that spells: a to z, each inside a word and at its end."""
    marks = ["<|startoftext|>", "<|endoftext|>"]
    spelled = [letter + end for end in ("", "</w>") for letter in string.ascii_lowercase]
    vocabulary = {token: number for number, token in enumerate([*marks, *spelled])}
    layers = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "vocab_size": len(vocabulary), "projection_dim": 32, "bos_token_id": 0, "eos_token_id": 1,
        "max_position_embeddings": 32,
    }  # fmt: skip
    detector = {
        "model_type": "sam3", "vision_config": vit(), "text_config": text, "geometry_encoder_config": layers,
        "detr_encoder_config": layers, "detr_decoder_config": {**layers, "num_queries": 5},
        "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
    }  # fmt: skip
    tracker = {
        "model_type": "sam3_tracker_video", "vision_config": vit(), "prompt_encoder_config": PROMPTS,
        "mask_decoder_config": DECODER, **MEMORY,
    }  # fmt: skip
    config = t.Sam3VideoConfig(detector_config=detector, tracker_config=tracker)
    tokenizer = t.CLIPTokenizer(vocab=vocabulary, merges=[])
    return t.Sam3VideoModel(config), t.Sam3Processor(t.Sam3ImageProcessor(size=SQUARE), tokenizer)


# What is published: the model for video, with the one for images inside.
VIDEO: dict[str, Callable[[], Built]] = {
    "sam2_video": lambda: video(
        "Sam2VideoConfig",
        "Sam2VideoModel",
        lambda: {"model_type": "sam2_vision_model", **hiera()},
        "Sam2ImageProcessor",
    ),
    "edgetam_video": lambda: video(
        "EdgeTamVideoConfig",
        "EdgeTamVideoModel",
        lambda: {"model_type": "edgetam_vision_model", **repvit()},
        "Sam2ImageProcessor",
    ),
    "sam3_tracker_video": lambda: video(
        "Sam3TrackerVideoConfig", "Sam3TrackerVideoModel", vit, "Sam3ImageProcessor"
    ),
    "sam3_video": sam3_video,
}


def built(family: str) -> Built:
    """Weights so large that every part of the image and the prompt matters."""
    torch.manual_seed(0)
    model, processor = {**BUILDERS, **VIDEO}[family]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.1)
        if family == "sam3_video":  # queries that differ, with scores on both sides of 0.5
            model.detector_model.detr_decoder.query_embed.weight.mul_(10)
            model.detector_model.dot_product_scoring.query_proj.weight.mul_(3)
            model.detector_model.detr_decoder.presence_head.layer3.bias.add_(0.45)
    return model.eval(), processor


def saved(family: str, folder: Path) -> Built:
    model, processor = built(family)
    model.save_pretrained(folder)
    if family in VIDEO:
        # Under the names that are published: save_pretrained of transformers 5.23 doubles SAM 3's prefix.
        weights = {name: weight.contiguous().clone() for name, weight in model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    processor.save_pretrained(folder)
    return model, processor
