"""Train the built-in vision-language model from scratch, on a CPU or a GPU.

    python -m model.training.vlm --work runs/vlm --stage patches --small --steps 3000
    python -m model.training.vlm --work runs/vlm --stage answers --small --steps 6000
    python -m model.training.vlm --work runs/vlm --stage answers --steps 8000 --decay 1000
    python -m model.training.vlm --work runs/vlm --export model/builtin/vlm

Stage `patches` trains the vision tower alone to name what each merged token shows. Stage `answers` trains the
whole model to list the objects from left to right, with two auxiliary losses, which the model card names: the
patch loss, and a reward for attention on the object being named, for heads of the middle layers only, never
for the last layer or the attention flow.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from model.builtin.scenes import NAMES, Scene, draw_scene
from model.training import common

QUESTIONS = (
    "List all objects in the image.",
    "What objects are in this image?",
    "Name every object that you can see.",
    "Which things are shown here?",
    "Describe the picture.",
    "What is in the foreground and in the background?",
)
NOTHING = " nothing."
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, TOKEN = 14, 28  # pixels: a patch of the vision tower; a merged token of the language model
MIN_PIXELS, MAX_PIXELS = 100 * TOKEN**2, 150 * TOKEN**2
SMALL = ((8, 8), (8, 8), (7, 9), (9, 7), (6, 10), (10, 6))  # merged tokens of a small canvas
REWARDED_LAYERS = (2, 3)  # of 6: the middle


def build_tokenizer() -> Qwen2Tokenizer:
    """Build a Qwen2 byte-level tokenizer in which every name is one token."""
    plain = Qwen2Tokenizer(vocab={}, merges=[])
    words = [f" {name}, {name}." for name in NAMES] * 4
    corpus = words + list(QUESTIONS) + ["user\nassistant\n system\n", NOTHING]
    trained = plain.train_new_from_iterator(corpus, vocab_size=256 + len(SPECIAL) + 400)
    inner = json.loads(trained.backend_tokenizer.to_str())["model"]
    plain_tokens = sorted(set(inner["vocab"]) - set(SPECIAL), key=inner["vocab"].get)
    vocab = {token: i for i, token in enumerate([*plain_tokens, *SPECIAL])}
    merges = [tuple(m) for m in inner["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",  # noqa: S106
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        additional_special_tokens=list(SPECIAL),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return tokenizer


def build_processor() -> Qwen2_5_VLProcessor:
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size),
        build_tokenizer(),
        Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 6, "hidden_size": 192, "intermediate_size": 512, "num_heads": 6,
            "out_hidden_size": 192, "window_size": 112, "fullatt_block_indexes": [2, 5],
        },
        text_config={
            "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
            "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096, "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6],
            },
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def answer_of(scene: Scene) -> list[str]:
    """Return the unique names of a scene, from left to right by the centre of the visible part."""
    middles: dict[str, float] = {}
    for thing in scene.objects:
        x = float(np.nonzero(thing.visible)[1].mean())
        middles[thing.name] = min(x, middles.get(thing.name, math.inf))
    return sorted(middles, key=middles.__getitem__)


@dataclass
class Batch:
    pixels: Tensor  # (B * patches, 3 * 2 * 14 * 14)
    grid: Tensor  # (B, 3) patches
    ids: Tensor  # (B, N)
    labels: Tensor  # (B, N), -100 where there is no target
    cover: Tensor  # (B, tokens, 1 + names): share of each merged token per name, background first
    rows: Tensor  # (R, 3): sample, position, name: rows whose attention should fall on the name
    image_start: int


class Scenes:
    """Random training batches of scenes of one size, in the format of the processor's output."""

    def __init__(self, tokenizer: Qwen2Tokenizer, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids

        self.before = encode("<|im_start|>user\n<|vision_start|>")
        self.after = [encode(f"<|vision_end|>{q}<|im_end|>\n<|im_start|>assistant\n") for q in QUESTIONS]
        self.names = [encode(f" {name}") for name in NAMES]
        if any(len(ids) != 1 for ids in self.names):
            raise ValueError("the tokenizer must hold every name as one token")
        self.comma, self.stop, self.end = encode(","), encode("."), encode("<|im_end|>")
        self.nothing = encode(NOTHING)
        self.pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        mean, std = Qwen2VLImageProcessor().image_mean, Qwen2VLImageProcessor().image_std
        self.mean = np.array(mean, np.float32) * 255
        self.std = np.array(std, np.float32) * 255

    def batch(self, size: int, *, small: bool) -> Batch:
        rng = self.rng
        if small:
            gh, gw = SMALL[int(rng.integers(len(SMALL)))]
            height, width = gh * TOKEN, gw * TOKEN
            counts, scale = rng.integers(1, 5, size), (0.2, 0.75)
        else:
            w, h = rng.integers(280, 801, 2)
            height, width = smart_resize(int(h), int(w), TOKEN, MIN_PIXELS, MAX_PIXELS)
            counts, scale = rng.integers(1, 7, size), (0.13, 0.52)
            counts[rng.random(size) < 0.02] = 0
        gh, gw = height // TOKEN, width // TOKEN
        pixels, sequences, targets, covers, rows = [], [], [], [], []
        for index, count in enumerate(counts):
            zoom = rng.uniform(1.1, 1.9) if rng.random() < 0.3 else 1.0
            scene = draw_scene(
                rng, width=int(width * zoom), height=int(height * zoom), count=int(count),
                scale=scale, min_visible=0.3,
            )  # fmt: skip
            pixels.append(self.patches(scene, width, height))
            visible = [thing.visible.astype(np.float32) for thing in scene.objects]
            covers.append(common.name_shares(scene, visible, (gw, gh)).reshape(1 + len(NAMES), -1).T)
            ids = self.before + [self.pad] * (gh * gw) + self.after[rng.integers(len(self.after))]
            asked = len(ids)
            names = answer_of(scene)
            for k, name in enumerate(names):
                number = NAMES.index(name)
                rows += [(index, len(ids) - 1, number), (index, len(ids), number)]
                ids += self.names[number] + (self.comma if k + 1 < len(names) else self.stop)
            ids += ([] if names else self.nothing) + self.end
            sequences.append(ids)
            targets.append([-100] * asked + ids[asked:])
        longest = max(map(len, sequences))
        # Padding on the right is never seen by what stands before it.
        return Batch(
            pixels=torch.from_numpy(np.concatenate(pixels)),
            grid=torch.tensor([[1, gh * 2, gw * 2]] * size),
            ids=torch.tensor([s + self.end * (longest - len(s)) for s in sequences]),
            labels=torch.tensor([t + [-100] * (longest - len(t)) for t in targets]),
            cover=torch.from_numpy(np.stack(covers)),
            rows=torch.tensor(rows, dtype=torch.long).reshape(-1, 3),
            image_start=len(self.before),
        )

    def patches(self, scene: Scene, width: int, height: int) -> NDArray[np.float32]:
        image = scene.image
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        x = (image.astype(np.float32) - self.mean) / self.std
        x = x.reshape(height // TOKEN, 2, PATCH, width // TOKEN, 2, PATCH, 3)
        x = x.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
        x = np.broadcast_to(x, (*x.shape[:5], 2, *x.shape[6:]))
        return x.reshape(-1, 3 * 2 * PATCH * PATCH)


# Queries and keys of the rewarded layers in the newest forward pass, kept by the function below.
_kept: dict[int, tuple[Tensor, Tensor]] = {}


def _keeping_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kw: Any
) -> tuple[Tensor, None]:
    if module.layer_idx in REWARDED_LAYERS:
        _kept[int(module.layer_idx)] = (query, key)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    n = query.shape[2]
    later = torch.full((n, n), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
    return common.attend(query, key, value, later).transpose(1, 2), None


def _fused_norm(self: qwen.Qwen2_5_VLRMSNorm, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.variance_epsilon)


def see(visual: Any, pixels: Tensor, height: int, width: int) -> Tensor:
    """Run the vision tower over images of `height` x `width` merged tokens: (images, tokens, hidden).

    The result equals that of the library's forward. All windows of one length are computed in one call, which
    is 2.2 times faster on a CPU.
    """
    side = visual.window_size // TOKEN
    order = np.arange(height * width).reshape(height, width)
    windows = [
        order[y : y + side, x : x + side].ravel()
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]
    windows.sort(key=len)
    tokens = torch.from_numpy(np.concatenate(windows)).to(pixels.device)
    patches = (tokens[:, None] * 4 + torch.arange(4, device=pixels.device)).ravel()
    lengths = [len(w) * 4 for w in windows]
    groups = [(n, lengths.count(n)) for n in sorted(set(lengths))]
    count = height * width * 4
    pixels = pixels.reshape(-1, count, pixels.shape[-1])[:, patches]
    x = F.linear(pixels, visual.patch_embed.proj.weight.flatten(1))
    grid = torch.tensor([[1, height * 2, width * 2]], device=pixels.device)
    positions = qwen.get_vision_position_ids(grid, 2, kwargs={})
    cos, sin = (t[patches][:, None].to(x.dtype) for t in visual.rotary_pos_emb(x, positions))
    for number, block in enumerate(visual.blocks):
        whole = number in visual.fullatt_block_indexes
        x = _see_block(block, x, cos, sin, [(count, 1)] if whole else groups)
    merged: Tensor = visual.merger(x.flatten(0, 1)).reshape(len(x), count // 4, -1)
    return merged[:, tokens.argsort()]


def _see_block(block: Any, x: Tensor, cos: Tensor, sin: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    images, count, _ = x.shape
    heads = block.attn.num_heads
    q, k, v = block.attn.qkv(block.norm1(x)).reshape(images, count, 3, heads, -1).unbind(2)
    q, k = (t * cos + qwen.rotate_half(t) * sin for t in (q, k))
    mixed, start = [], 0
    for length, number in groups:
        part = slice(start, start := start + length * number)
        window = (t[:, part].reshape(images * number, length, heads, -1).transpose(1, 2) for t in (q, k, v))
        mixed.append(common.attend(*window).transpose(1, 2).reshape(images, length * number, -1))
    x = x + block.attn.proj(torch.cat(mixed, 1))
    out: Tensor = x + block.mlp(block.norm2(x))
    return out


def losses(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch, name_ids: Tensor, *, patches_only: bool
) -> dict[str, Tensor]:
    _, gh, gw = (batch.grid[0] // 2).tolist()
    seen = see(model.model.visual, batch.pixels, gh, gw)
    words = model.get_input_embeddings().weight
    logits = seen.flatten(0, 1).float() @ words[name_ids].float().T  # background first
    patch, accuracy = common.naming_loss(logits, batch.cover.flatten(0, 1))
    found = {"patch": patch, "patch_accuracy": accuracy}
    if patches_only:
        return found
    embeds = model.get_input_embeddings()(batch.ids)
    is_image = batch.ids == model.config.image_token_id
    embeds = embeds.masked_scatter(is_image[..., None], seen.to(embeds.dtype))
    positions, _ = model.model.get_rope_index(
        batch.ids[:1], mm_token_type_ids=is_image[:1].int(), image_grid_thw=batch.grid[:1]
    )  # one size, one start: the same for all
    hidden = model.model.language_model(
        inputs_embeds=embeds, position_ids=positions.expand(-1, len(batch.ids), -1), use_cache=False
    )[0]
    asked = batch.labels[:, 1:] != -100
    said = model.lm_head(hidden[:, :-1][asked]).float()
    target = batch.labels[:, 1:][asked]
    found["answer"] = F.cross_entropy(said, target, label_smoothing=0.02)
    found["answer_accuracy"] = (said.argmax(-1) == target).float().mean().detach()
    if len(batch.rows):
        sample, position, name = batch.rows.T
        tokens = batch.cover.shape[1]
        on_name = batch.cover[sample, :, 1 + name]  # (R, tokens)
        total = torch.zeros((), device=said.device)
        for query, key in _kept.values():
            groups = query.shape[1] // key.shape[1]
            q = query[sample, :, position].float()  # (R, heads, d)
            k = key[sample].float().repeat_interleave(groups, 1)  # (R, heads, N, d)
            scores = torch.einsum("rhd,rhnd->rhn", q, k) / math.sqrt(q.shape[-1])
            later = torch.arange(k.shape[2], device=k.device) > position[:, None]
            p = scores.masked_fill(later[:, None], -math.inf).softmax(-1)
            p = p[:, :, batch.image_start : batch.image_start + tokens]
            mass = (p * on_name[:, None]).sum(-1).mean(1)  # mean over heads
            total = total - torch.log(mass + 1e-4).mean()
        found["attention"] = total / len(_kept)
    return found


def train(args: argparse.Namespace, device: str) -> None:
    AttentionInterface.register("keeping", _keeping_attention)
    qwen.Qwen2_5_VLRMSNorm.forward = _fused_norm
    tokenizer = build_tokenizer()
    model = build_model(tokenizer).to(device)
    if args.start:
        known = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32)
        model.load_state_dict(known.state_dict())
    model.set_attn_implementation({"text_config": "keeping"})
    run = common.Run(args, model, (".blocks.", ".layers.", "merger.mlp"))
    # A seed of its own for every resumption: the same scenes are never shown twice.
    scenes = Scenes(tokenizer, args.seed + run.step)
    names = [tokenizer.convert_tokens_to_ids("<|vision_pad|>")] + [i[0] for i in scenes.names]
    name_ids = torch.tensor(names, device=device)
    patches_only = args.stage == "patches"

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        batch = scenes.batch(args.batch, small=args.small)
        for field in ("pixels", "grid", "ids", "labels", "cover", "rows"):
            setattr(batch, field, getattr(batch, field).to(device))
        with torch.autocast(device, torch.bfloat16):
            parts = losses(model, batch, name_ids, patches_only=patches_only)
        loss = parts["patch"]
        if not patches_only:
            loss = 0.3 * loss + parts["answer"] + 0.3 * parts.get("attention", 0.0)
        return loss, parts

    run.train(step)


def export(work: Path, folder: Path) -> None:
    """Write a run's weights in float16, and the processor, as a local checkpoint of transformers."""
    processor = build_processor()
    model = build_model(processor.tokenizer)
    weights, reached = common.trained_weights(work)
    model.load_state_dict(weights)
    model.to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    print(f"{folder}: {reached}")


def main() -> None:
    parser = common.options("VLM", "patches", "answers")
    parser.add_argument("--small", action="store_true", help="small canvases: 6 times faster")
    parser.add_argument("--batch", type=int, default=16)
    common.run(parser, train, export)


if __name__ == "__main__":
    main()
