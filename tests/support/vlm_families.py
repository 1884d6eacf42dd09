"""Tiny random models of every family in attention/token_grids.py: real architectures and processors.

A family's entry in BUILDERS makes the two; `saved` writes them where VLM.load finds them.
"""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn

Built = tuple[Any, Any]  # model, processor
Kind = Callable[[list[str]], Tokenizer]  # of tokenizers, made from the special tokens

WORDS = [
    "a",
    "bird",
    "cat",
    "dog",
    "house",
    "list",
    "objects",
    "the",
    "tree",
    "two",
    "what",
    "is",
    ".",
    "Yes",
    "No",
]
COMMON = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TAGS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# Patches of 16 pixels leave room for what resampling smears: bicubic 2 pixels each side, Lanczos 3.
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
SQUARE = {"height": 64, "width": 64}


def tokenizer(*extra: str, kind: Kind | None = None, **named: str) -> Any:
    """Whole words, or a `kind` below; `named` tokens become attributes, `extra` ones are only special."""
    specials = list(dict.fromkeys([*COMMON.values(), *extra, *named.values()]))
    made = t.PreTrainedTokenizerFast(
        tokenizer_object=(kind or whole_words)(specials),
        clean_up_tokenization_spaces=False,
        extra_special_tokens=named,
        **COMMON,
    )
    made.add_special_tokens({"additional_special_tokens": [*extra, *named.values()]})
    return made


def whole_words(specials: list[str]) -> Tokenizer:
    vocab = [*COMMON.values(), *WORDS, *specials]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(vocab))}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return inner


def metaspace(specials: list[str]) -> Tokenizer:
    """SentencePiece's way, as Llama's: "▁" for a space, also before the first word, and bytes for the rest.

    Words have a piece with the space and one without, but "Yes" and "No" have only the latter.
    """
    spaced = [f"▁{word}" for word in WORDS if word not in ("Yes", "No")]
    vocab = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.ascii_letters, ".", ","]
    inner = Tokenizer(_pieces(vocab, [*spaced, *WORDS], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner


def byte_level(specials: list[str]) -> Tokenizer:
    """GPT-2's way, as Qwen's: pieces of UTF-8, with the space before a word."""
    vocab = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(_pieces(vocab, [*(f"Ġ{word}" for word in WORDS), *WORDS]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _pieces(vocab: list[str], words: list[str], **kwargs: Any) -> models.BPE:
    """Byte-pair encoding that knows some words whole; each grows from its beginning."""
    merges = dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word)))
    known = dict.fromkeys([*vocab, *("".join(pair) for pair in merges)])
    return models.BPE({piece: i for i, piece in enumerate(known)}, list(merges), **kwargs)


def template(image: str) -> str:
    return (
        "{% for message in messages %}<s>{{ message['role'] }} {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %} {{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %} is {% endif %}"
    )


def text(tok: Any, **kwargs: Any) -> dict[str, Any]:
    return {**TEXT, "vocab_size": len(tok), **kwargs}


def qwen2_vl() -> Built:
    return _qwen(
        t.Qwen2VLForConditionalGeneration,
        t.Qwen2VLConfig,
        t.Qwen2VLProcessor,
        14,
        {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
    )


def qwen2_5_vl() -> Built:
    return _qwen(
        t.Qwen2_5_VLForConditionalGeneration,
        t.Qwen2_5_VLConfig,
        t.Qwen2_5_VLProcessor,
        14,
        {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
        | {"window_size": 56, "fullatt_block_indexes": [1]},
        kind=byte_level,
    )


def qwen3_vl() -> Built:
    return _qwen(
        t.Qwen3VLForConditionalGeneration,
        t.Qwen3VLConfig,
        t.Qwen3VLProcessor,
        16,
        {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
        | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    )


def qwen3_vl_moe() -> Built:
    return _qwen(
        t.Qwen3VLMoeForConditionalGeneration,
        t.Qwen3VLMoeConfig,
        t.Qwen3VLProcessor,
        16,
        {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
        | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    )


def _qwen(
    model: Any,
    config: Any,
    processor: Any,
    patch: int,
    vision: dict[str, Any],
    kind: Kind | None = None,
    **extra: Any,
) -> Built:
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tok = tokenizer("<|vision_start|>", "<|vision_end|>", kind=kind, **named)
    ids = tok.convert_tokens_to_ids
    cell = 2 * patch
    images = t.Qwen2VLImageProcessor(
        patch_size=patch, size={"shortest_edge": 12 * cell**2, "longest_edge": 20 * cell**2}
    )
    made = model(
        config(
            vision_config={**vision, "patch_size": patch},
            text_config=text(tok, rope_parameters=MROPE, **extra),
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
        )
    )
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return made, processor(images, tok, t.Qwen2VLVideoProcessor(), chat_template=template(image))


def glm4v() -> Built:
    tok = tokenizer(
        "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
        image_token="<|image|>", video_token="<|video|>",
    )  # fmt: skip
    ids = tok.convert_tokens_to_ids
    model = t.Glm4vForConditionalGeneration(
        t.Glm4vConfig(
            vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
            | {"out_hidden_size": 32, "patch_size": 14, "image_size": 56},
            text_config=text(tok, rope_parameters=MROPE),
            image_token_id=ids("<|image|>"),
            video_token_id=ids("<|video|>"),
            image_start_token_id=ids("<|begin_of_image|>"),
            image_end_token_id=ids("<|end_of_image|>"),
            video_start_token_id=ids("<|begin_of_video|>"),
            video_end_token_id=ids("<|end_of_video|>"),
        )
    )
    # Two frames of one picture count as its pixels here.
    images = t.Glm4vImageProcessor(size={"shortest_edge": 2 * 12 * 28**2, "longest_edge": 2 * 20 * 28**2})
    image = "<|begin_of_image|><|image|><|end_of_image|>"
    return model, t.Glm4vProcessor(images, tok, t.Glm4vVideoProcessor(), chat_template=template(image))


def _clip(**kwargs: Any) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", "projection_dim": 16, **TOWER, **kwargs}


def _siglip(**kwargs: Any) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", "vision_use_head": False, **TOWER, **kwargs}


def llava() -> Built:
    images = t.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE)
    return _llava(images, _clip(), kind=metaspace)


def llava_padded() -> Built:
    images = t.LlavaImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE, do_pad=True)
    return _llava(images, _clip())


def llava_siglip() -> Built:
    """A tower whose patches leave a rim of 6 pixels unseen, as SigLIP's at 384 pixels."""
    images = t.SiglipImageProcessor(size={"height": 70, "width": 70})
    return _llava(images, _siglip(image_size=70), cls_tokens=0)


def _llava(images: Any, vision: dict[str, Any], cls_tokens: int = 1, kind: Kind | None = None) -> Built:
    tok = tokenizer(kind=kind, image_token="<image>")
    strategy = "default" if cls_tokens else "full"
    model = t.LlavaForConditionalGeneration(
        t.LlavaConfig(
            vision_config=vision,
            text_config=text(tok, model_type="llama"),
            image_token_index=tok.image_token_id,
            vision_feature_select_strategy=strategy,
        )
    )
    processor = t.LlavaProcessor(
        images,
        tok,
        patch_size=16,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=cls_tokens,
        chat_template=template("<image>"),
    )
    return model, processor


def _pixtral_processor(tok: Any, merge: int) -> Any:
    return t.PixtralProcessor(
        t.PixtralImageProcessor(size={"longest_edge": 96}, patch_size=16),
        tok,
        patch_size=16,
        spatial_merge_size=merge,
        chat_template=template("[IMG]"),
    )


def llava_pixtral() -> Built:
    tok = tokenizer("[IMG_BREAK]", "[IMG_END]", image_token="[IMG]")
    vision = {"model_type": "pixtral", **TOWER, "head_dim": 8, "image_size": 96}
    config = t.LlavaConfig(
        vision_config=vision,
        text_config=text(tok, model_type="mistral"),
        image_token_index=tok.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    return t.LlavaForConditionalGeneration(config), _pixtral_processor(tok, 1)


def mistral3() -> Built:
    tok = tokenizer("[IMG_BREAK]", "[IMG_END]", image_token="[IMG]")
    config = t.Mistral3Config(
        vision_config={"model_type": "pixtral", **TOWER, "head_dim": 8, "image_size": 96},
        text_config=text(tok, model_type="mistral"),
        image_token_index=tok.image_token_id,
        spatial_merge_size=2,
    )
    return t.Mistral3ForConditionalGeneration(config), _pixtral_processor(tok, 2)


def vipllava() -> Built:
    tok = tokenizer(image_token="<image>")
    model = t.VipLlavaForConditionalGeneration(
        t.VipLlavaConfig(
            vision_config=_clip(),
            text_config=text(tok, model_type="llama"),
            image_token_index=tok.image_token_id,
            vision_feature_layers=[-1, -2],
        )
    )
    processor = t.LlavaProcessor(
        t.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE),
        tok,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
    return model, processor


def llava_next() -> Built:
    tok = tokenizer(image_token="<image>")
    pinpoints = [[64, 128], [128, 64], [128, 128], [192, 64], [64, 192]]
    model = t.LlavaNextForConditionalGeneration(
        t.LlavaNextConfig(
            vision_config=_clip(),
            text_config=text(tok, model_type="llama"),
            image_token_index=tok.image_token_id,
            image_grid_pinpoints=pinpoints,
        )
    )
    processor = t.LlavaNextProcessor(
        t.LlavaNextImageProcessor(
            size={"shortest_edge": 64}, crop_size=SQUARE, image_grid_pinpoints=pinpoints
        ),
        tok,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
    return model, processor


def llava_onevision() -> Built:
    return _onevision("anyres_max_9")


def llava_onevision_resampled() -> Built:
    return _onevision("anyres_max_1")


def _onevision(ratio: str) -> Built:
    tok = tokenizer(image_token="<image>", video_token="<video>")
    pinpoints = [[70 * rows, 70 * columns] for rows in range(1, 4) for columns in range(1, 4)]
    model = t.LlavaOnevisionForConditionalGeneration(
        t.LlavaOnevisionConfig(
            vision_config=_siglip(image_size=70),  # 4 patches of 16, and 6 pixels unseen, in each tile
            text_config=text(tok, model_type="qwen2"),
            image_token_index=tok.image_token_id,
            video_token_index=tok.video_token_id,
            image_grid_pinpoints=pinpoints,
            vision_aspect_ratio=ratio,
        )
    )
    processor = t.LlavaOnevisionProcessor(
        t.LlavaOnevisionImageProcessor(size={"height": 70, "width": 70}, image_grid_pinpoints=pinpoints),
        tok,
        t.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=ratio,
        chat_template=template("<image>"),
    )
    return model, processor


def internvl() -> Built:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tok = tokenizer(kind=None, **named)
    model = t.InternVLForConditionalGeneration(
        t.InternVLConfig(
            vision_config={**TOWER, "patch_size": 8},
            text_config=text(tok, model_type="qwen2"),
            image_token_id=tok.context_image_token_id,
            image_seq_length=16,
        )
    )
    processor = t.InternVLProcessor(
        t.GotOcr2ImageProcessor(size=SQUARE, max_patches=6),
        tok,
        t.InternVLVideoProcessor(),
        image_seq_length=16,
        chat_template=template("<IMG_CONTEXT>"),
    )
    return model, processor


def aya_vision() -> Built:
    extra = ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
    tok = tokenizer(*extra, "<|IMG_PATCH|>")
    model = t.AyaVisionForConditionalGeneration(
        t.AyaVisionConfig(
            vision_config=_siglip(patch_size=8),
            text_config=text(tok, model_type="cohere2"),
            image_token_index=tok.convert_tokens_to_ids("<|IMG_PATCH|>"),
            downsample_factor=2,
            adapter_layer_norm_eps=1e-6,
        )
    )
    processor = t.AyaVisionProcessor(
        t.GotOcr2ImageProcessor(size=SQUARE, max_patches=6),
        tok,
        patch_size=8,
        img_size=64,
        downsample_factor=2,
        chat_template=template("<image>"),
    )
    return model, processor


def cohere2_vision() -> Built:
    tok = tokenizer(
        boi_token="<boi>", eoi_token="<eoi>", image_token="<image>", img_line_break_token="<line>"
    )
    model = t.Cohere2VisionForConditionalGeneration(
        t.Cohere2VisionConfig(
            vision_config=_siglip(patch_size=8),
            text_config=text(tok, model_type="cohere2"),
            image_token_id=tok.image_token_id,
            downsample_factor=2,
            alignment_intermediate_size=32,
        )
    )
    # What this processor calls its patch size is the number of tokens per side of a tile.
    images = t.Cohere2VisionImageProcessor(size=SQUARE, max_patches=6, patch_size=4)
    return model, t.Cohere2VisionProcessor(images, tok, chat_template=template("<image>"))


def gemma3() -> Built:
    tok = tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    model = t.Gemma3ForConditionalGeneration(
        t.Gemma3Config(
            vision_config=_siglip(patch_size=8),
            text_config=text(tok, sliding_window=16, layer_types=["sliding_attention", "full_attention"]),
            mm_tokens_per_image=16,
            boi_token_index=tok.boi_token_id,
            eoi_token_index=tok.eoi_token_id,
            image_token_index=tok.image_token_id,
        )
    )
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    processor = t.Gemma3Processor(
        t.Gemma3ImageProcessor(size=SQUARE),
        tok,
        image_seq_length=16,
        chat_template=template("<start_of_image>"),
    )
    return model, processor


def paligemma() -> Built:
    return _paligemma(model_type="gemma")


def paligemma2() -> Built:  # Gemma 2 caps its scores
    return _paligemma(model_type="gemma2", attn_logit_softcapping=50.0)


def _paligemma(**decoder: Any) -> Built:
    tok = tokenizer(image_token="<image>")
    images = t.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 16
    processor = t.PaliGemmaProcessor(images, tok)  # adds its 1152 location and segment tokens
    model = t.PaliGemmaForConditionalGeneration(
        t.PaliGemmaConfig(
            vision_config=_siglip(projection_dim=32),
            text_config=text(tok, **decoder),
            image_token_index=tok.image_token_id,
            projection_dim=32,
        )
    )
    return model, processor


def idefics3() -> Built:
    images = t.Idefics3ImageProcessor(size={"longest_edge": 192}, max_image_size={"longest_edge": 64})
    return _idefics(t.Idefics3ForConditionalGeneration, t.Idefics3Config, t.Idefics3Processor, images)


def smolvlm() -> Built:
    images = t.SmolVLMImageProcessor(size={"longest_edge": 192}, max_image_size={"longest_edge": 64})
    video = t.SmolVLMVideoProcessor()
    return _idefics(
        t.SmolVLMForConditionalGeneration, t.SmolVLMConfig, t.SmolVLMProcessor, images, video_processor=video
    )


def _idefics(model: Any, config: Any, processor: Any, images: Any, **kwargs: Any) -> Built:
    tok = tokenizer(
        "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<video>", *TAGS
    )
    made = model(
        config(
            vision_config={**TOWER, "patch_size": 8},
            text_config=text(tok, model_type="llama"),
            image_token_id=tok.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        )
    )
    return made, processor(images, tok, image_seq_len=16, chat_template=template("<image>"), **kwargs)


BUILDERS: dict[str, Callable[[], Built]] = {
    build.__name__: build
    for build in (
        qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, glm4v, llava, llava_padded, llava_siglip, llava_pixtral,
        vipllava, mistral3, llava_next, llava_onevision, llava_onevision_resampled, internvl, aya_vision,
        cohere2_vision, gemma3, paligemma, paligemma2, idefics3, smolvlm,
    )
}  # fmt: skip


def saved(name: str, folder: Path) -> str:
    """Write a family's tiny model and processor, as a repository of weights would hold them."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    tok = processor.tokenizer
    specials = [i for i in range(len(tok)) if tok.decode([i], skip_special_tokens=True) == ""]
    with torch.no_grad():  # an answer of random weights still has words, and no end
        model.get_output_embeddings().weight[specials] = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def unmix(model: Any) -> None:
    """Let the attention of a vision tower add nothing: it is all that patches learn from each other."""
    decoder = set(model.model.get_decoder().modules())
    layers = [m for m in model.modules() if "Attention" in type(m).__name__ and m not in decoder]
    assert layers
    for layer in layers:
        *_, output = (module for module in layer.modules() if isinstance(module, nn.Linear))
        nn.init.zeros_(output.weight)
        if output.bias is not None:
            nn.init.zeros_(output.bias)
