"""Train the built-in segmenter from scratch, on a CPU or a GPU.

    python -m model.training.segmenter --work runs/segmenter --stage dense --steps 1500
    python -m model.training.segmenter --work runs/segmenter --steps 6000 --decay 1500
    python -m model.training.segmenter --work runs/segmenter --export model/builtin/segmenter

Stage `dense` trains the image encoder alone, through a temporary head: for every pixel, whether it shows an
object, and which. Stage `prompts` simulates clicks as in the SAM paper (section 3 and appendix A): a first
point, point pair or box, then clicks on the error of the answer together with its logits. The first and the
last answer get a loss.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from segment_anything.modeling import Sam, image_encoder
from torch import Tensor, nn

from model.builtin.scenes import NAMES, Scene, draw_scene
from model.segmentation.sam_families.family import Tokens
from model.segmentation.sam_families.segment_anything_sam import build_sam, decode, embed
from model.segmentation.segmenter import MASK_LOGIT
from model.training import common

CONFIG: dict[str, Any] = {
    "image_size": 256, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3,
    "global_attn_indexes": [2, 5], "window_size": 8, "use_rel_pos": False,
    "prompt_embed_dim": 128, "decoder_mlp_dim": 512, "decoder_heads": 4, "iou_head_hidden_dim": 128,
}  # fmt: skip
SIZE, LOW, CELLS = 256, 128, 64  # pixels a side: the encoder's square, the logits, the named cells

MEAN = (123.675, 116.28, 103.53)  # RGB, SAM's


def scene_on_square(rng: np.random.Generator) -> tuple[Scene, NDArray[np.float32], NDArray[Any]]:
    """Draw a scene. Return it with its image padded to (SIZE, SIZE, 3) and soft masks (objects, 128, 128)."""
    long = int(rng.integers(SIZE, 440))
    short = int(long * rng.uniform(0.36, 1.0))
    width, height = (long, short) if rng.random() < 0.5 else (short, long)
    count = int(rng.integers(1, 7))
    scene = None
    while scene is None or not scene.objects:
        scene = draw_scene(rng, width=width, height=height, count=count, scale=(0.13, 0.55), min_visible=0.25)
    zoom = SIZE / long
    w, h = int(width * zoom + 0.5), int(height * zoom + 0.5)
    # The padding is zero once normalised, as in Sam.preprocess.
    square = np.tile(np.array(MEAN, np.float32), (SIZE, SIZE, 1))
    square[:h, :w] = cv2.resize(scene.image, (w, h), interpolation=cv2.INTER_AREA)
    masks = []
    for thing in scene.objects:
        full = np.zeros((SIZE, SIZE), np.float32)
        visible = thing.visible.astype(np.float32)
        full[:h, :w] = cv2.resize(visible, (w, h), interpolation=cv2.INTER_AREA)
        masks.append(cv2.resize(full, (LOW, LOW), interpolation=cv2.INTER_AREA))
    return scene, square, np.stack(masks)


def random_point(rng: np.random.Generator, region: NDArray[Any]) -> tuple[float, float]:
    """Draw any pixel or the innermost of a boolean (128, 128) region. Return its x, y on the SIZE square."""
    if rng.random() < 0.4:
        depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 3)
        row, column = np.unravel_index(depth[1:-1, 1:-1].argmax(), region.shape)
    else:
        rows, columns = np.nonzero(region)
        pick = rng.integers(len(rows))
        row, column = rows[pick], columns[pick]
    jitter = rng.uniform(0, 1, 2)
    return float((column + jitter[0]) * SIZE / LOW), float((row + jitter[1]) * SIZE / LOW)


def first_prompt(rng: np.random.Generator, mask: NDArray[Any], kind: str) -> tuple[list[Any], list[int]]:
    """Draw a point, pair or box for a mask. Return points and labels: 0 and 1, or 2 and 3 for box corners."""
    on = mask > 0.5
    if kind == "box":
        rows, columns = np.nonzero(on)
        corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]], np.float32)
        noise = 0.06 if rng.random() < 0.5 else 0.015
        corners += rng.normal(0, noise, (2, 2)) * (corners[1] - corners[0])
        return (corners * SIZE / LOW).tolist(), [2, 3]
    points, labels = [random_point(rng, on)], [1]
    if kind == "pair":  # VL-SAM's: a positive and a negative point, often far away
        points.append(random_point(rng, mask < 0.1))
        labels.append(0)
    return points, labels


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return 10 x binary cross-entropy + dice loss of each mask: (prompts, masks)."""
    target = target[:, None].expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)
    return 10 * entropy + dice


def iou_of(logits: Tensor, target: Tensor) -> Tensor:
    on, true = logits > 0, (target > 0.5)[:, None]
    return (on & true).sum((2, 3)) / (on | true).sum((2, 3)).clamp(min=1)


class Trainer:
    def __init__(
        self, sam: Sam, head: nn.ModuleDict, seed: int, images: int, prompts: int, rounds: int
    ) -> None:
        self.sam, self.head = sam, head
        self.rng = np.random.default_rng(seed)
        self.images, self.prompts, self.rounds = images, prompts, rounds
        self.device = sam.device.type

    def losses(self, *, dense_only: bool) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = [scene_on_square(self.rng) for _ in range(self.images)]
        squares = torch.from_numpy(np.stack([d[1] for d in drawn])).permute(0, 3, 1, 2)
        pixels = (squares.to(self.device) - self.sam.pixel_mean) / self.sam.pixel_std
        shown = torch.from_numpy(np.stack([d[2].sum(0)[None].clip(0, 1) for d in drawn])).to(self.device)
        # One autocast context for all rounds: it keeps the half-precision copies of the weights.
        with torch.autocast(self.device, torch.bfloat16):
            embeddings = self.sam.image_encoder(pixels)
            guess = self.head["where"](embeddings).float()
            said = self.head["names"](embeddings).float()
            seen = F.binary_cross_entropy_with_logits(guess, shown)
            shares = [common.name_shares(scene, masks, (CELLS, CELLS)) for scene, _, masks in drawn]
            name, named = common.naming_loss(said, torch.from_numpy(np.stack(shares)).to(self.device))
            parts = {"seen": seen, "name": name, "named": named}
            loss = seen + 2 * name
            if dense_only:
                return loss, parts
            loss = 0.3 * loss
            # Image by image: a batch of all would outgrow a CPU's caches.
            reached: dict[str, list[Tensor]] = {}
            for embedding, (_, _, masks) in zip(embeddings, drawn, strict=True):
                loss = loss + self._rounds(embedding[None], masks, reached) / self.images
            return loss, parts | {key: torch.stack(values).mean() for key, values in reached.items()}

    def _rounds(self, embedding: Tensor, masks: NDArray[Any], reached: dict[str, list[Tensor]]) -> Tensor:
        sam, rng = self.sam, self.rng
        usable = [m for m in masks if (m > 0.5).any()]
        if not usable:
            return embedding.sum() * 0
        chosen = [usable[i % len(usable)] for i in range(self.prompts)]
        target = torch.from_numpy(np.stack(chosen)).to(self.device)
        encoded = embedding.bfloat16().expand(len(chosen), -1, -1, -1)
        position = sam.prompt_encoder.get_dense_pe().bfloat16().expand(len(chosen), -1, -1, -1)
        # One kind per image: SAM pads points by one token and boxes by none.
        kind = str(rng.choice(["box", "point", "pair"], p=[0.45, 0.3, 0.25]))
        prompts = [first_prompt(rng, m, kind) for m in chosen]
        extra = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        total = embedding.sum() * 0
        last = int(rng.integers(1, self.rounds))
        logits = target[:, None]  # replaced before it is read
        for turn in range(last + 1):
            longest = max(len(labels) for _, labels in prompts) + (kind != "box")
            points = torch.tensor([p + [[0.0, 0.0]] * (longest - len(p)) for p, _ in prompts])
            labels = torch.tensor([k + [-1] * (longest - len(k)) for _, k in prompts])
            learns = turn in (0, last)
            with torch.set_grad_enabled(learns):
                if turn:
                    extra = sam.prompt_encoder.mask_downscaling(logits)
                sparse = embed(sam, Tokens(points.to(self.device), labels.to(self.device)))
                answers, quality = decode(sam, encoded + extra.bfloat16(), position, sparse.bfloat16())
                answers, quality = answers.float(), quality.float()
            if learns:
                each = mask_loss(answers, target)
                right = iou_of(answers, target)
                # Output 0 alone answers unambiguous prompts; of 1 to 3 the best one learns.
                total = total + (each[:, 0] + each[:, 1:].min(1).values).mean() / 2
                total = total + F.mse_loss(quality, right) / 2
                kept = right[:, 0] if turn else right.gather(1, quality.argmax(1, keepdim=True))
                key = "iou_last" if turn else f"iou_{kind}"
                reached.setdefault(key, []).append(kept.mean())
            pick = 0 if turn or rng.random() < 0.5 else int(rng.integers(1, 4))
            logits = answers[:, pick : pick + 1].detach()
            wrong = (logits[:, 0] > 0) != (target > 0.5)
            if rng.random() < 0.6:  # a mask that came back as geometry: see Segmenter.hint
                logits = logits.sign() * MASK_LOGIT
            self._click(prompts, wrong.cpu().numpy(), chosen)
        return total

    def _click(self, prompts: list[Any], wrong: NDArray[Any], chosen: list[Any]) -> None:
        for (points, labels), error, mask in zip(prompts, wrong, chosen, strict=True):
            if not error.any():
                continue
            _, areas, stats, _ = cv2.connectedComponentsWithStats(error.astype(np.uint8))
            largest = areas == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
            x, y = random_point(self.rng, largest)
            row, column = (min(int(v * LOW / SIZE), LOW - 1) for v in (y, x))
            points.append((x, y))
            labels.append(int(mask[row, column] > 0.5))


def _short_attention(self: image_encoder.Attention, x: Tensor) -> Tensor:
    """Replace the forward of segment-anything's Attention by `attend`, without relative positions."""
    b, h, w, _ = x.shape
    q, k, v = self.qkv(x).reshape(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mixed: Tensor = self.proj(common.attend(q, k, v).transpose(1, 2).reshape(b, h, w, -1))
    return mixed


def start(sam: Sam) -> None:
    """Initialise the position embedding as a sine grid. To learn the grid would take an hour of training."""
    weight = sam.image_encoder.pos_embed
    side, width = weight.shape[1], weight.shape[3]
    rates = 1 / 100 ** torch.linspace(0, 1, width // 4)
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    grid = torch.cat([waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], 2)
    weight.data.copy_(0.5 * grid[None])


def new_head() -> nn.ModuleDict:
    """Return the temporary head for the losses of stage `dense`. It is not exported."""
    width = CONFIG["prompt_embed_dim"]
    where = nn.Sequential(nn.Conv2d(width, 16, 1), nn.PixelShuffle(4))
    names = nn.Sequential(nn.Conv2d(width, (1 + len(NAMES)) * 4, 1), nn.PixelShuffle(2))
    return nn.ModuleDict({"where": where, "names": names})


def train(args: argparse.Namespace, device: str) -> None:
    image_encoder.Attention.forward = _short_attention
    sam, head = build_sam(CONFIG).to(device), new_head().to(device)
    start(sam)
    if args.start:
        weights = load_file(args.start / "model.safetensors")
        sam.load_state_dict({key: value.float() for key, value in weights.items()})
    both = nn.ModuleDict({"sam": sam, "head": head})
    run = common.Run(args, both, (".blocks.", "transformer.layers"))
    trainer = Trainer(sam, head, args.seed + run.step, args.images, args.prompts, args.rounds)
    run.train(lambda: trainer.losses(dense_only=args.stage == "dense"))


def export(work: Path, folder: Path) -> None:
    weights, reached = common.trained_weights(work)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        key.removeprefix("sam."): value.half().contiguous()
        for key, value in weights.items()
        if key.startswith("sam.")
    }
    save_file(kept, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    print(f"{folder}: {reached}")


def main() -> None:
    parser = common.options("segmenter", "dense", "prompts")
    parser.add_argument("--images", type=int, default=8, help="images per step")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per image")
    parser.add_argument(
        "--rounds", type=int, default=7, help="the most, 2 or more: the first prompt, then clicks on errors"
    )
    common.run(parser, train, export)


if __name__ == "__main__":
    main()
