"""Define what both training scripts share: options, optimizers, schedule, checkpoints and the log."""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.builtin.scenes import NAMES, Scene


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute softmax attention. On a CPU with short sequences it takes an eighth of SDPA's time."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    mixed: Tensor = (scores if bias is None else scores + bias).softmax(-1) @ v
    return mixed


def name_shares(
    scene: Scene, masks: Iterable[NDArray[np.float32]], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the share of each grid cell that each name covers: (1 + names, h, w), background first."""
    shares = np.zeros((1 + len(NAMES), *size[::-1]), np.float32)
    for thing, mask in zip(scene.objects, masks, strict=True):
        shares[1 + NAMES.index(thing.name)] += cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    shares[0] = np.clip(1 - shares[1:].sum(0), 0, 1)
    return shares


def naming_loss(logits: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return two scalars: cross-entropy of names (axis 1), objects weighted up, and accuracy on objects."""
    weight = 1 + 3 * (1 - shares[:, 0])
    entropy = -(shares * logits.log_softmax(1)).sum(1)
    shown = shares[:, 1:].sum(1) > 0.6
    right = logits[:, 1:].argmax(1) == shares[:, 1:].argmax(1)
    return (entropy * weight).sum() / weight.sum(), right[shown].float().mean()


def optimizers(model: nn.Module, blocks: Sequence[str], lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices whose names contain one of `blocks`, and AdamW for all other weights."""
    matrices, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, p in model.named_parameters():
        inner = p.ndim == 2 and any(block in name for block in blocks)
        (matrices if inner else others).append(p)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int, decay: int) -> float:
    """Return the learning rate's factor: warm-up, then 1, then linear to 0 over the last `decay` steps."""
    return min(1.0, (step + 1) / 200, max(0.0, (steps - step) / max(decay, 1)))


class Run:
    """A training run that continues from `state.pt` in its folder, and logs mean losses to `log.txt`."""

    def __init__(self, args: argparse.Namespace, model: nn.Module, blocks: Sequence[str]) -> None:
        cv2.setNumThreads(1)
        args.work.mkdir(parents=True, exist_ok=True)
        self.args, self.model, self.opts = args, model, optimizers(model, blocks, args.rate)
        self.step = 0
        file = args.work / "state.pt"
        if file.exists():
            state = torch.load(file, map_location="cpu", weights_only=True)
            model.load_state_dict(state["model"])
            if state["stage"] == args.stage:
                self.step = int(state["step"])
                for opt, saved in zip(self.opts, state["optimizers"], strict=True):
                    opt.load_state_dict(saved)

    def train(self, losses: Callable[[], tuple[Tensor, dict[str, Tensor]]]) -> None:
        args, sums, since = self.args, dict[str, list[float]](), time.time()
        with (args.work / "log.txt").open("a") as log:
            while self.step < args.steps:
                for opt in self.opts:
                    for group in opt.param_groups:
                        group["lr"] = args.rate * schedule(self.step, args.steps, args.decay)
                loss, parts = losses()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                for opt in self.opts:
                    opt.step()
                    opt.zero_grad(set_to_none=True)
                self.step += 1
                for key, value in parts.items():
                    sums.setdefault(key, []).append(float(value.detach()))
                if self.step % args.every == 0:
                    row: dict[str, Any] = {k: round(sum(v) / len(v), 4) for k, v in sums.items()}
                    row |= {"step": self.step, "s_per_step": round((time.time() - since) / args.every, 3)}
                    print(args.stage, json.dumps(row), file=log, flush=True)
                    if not all(math.isfinite(v) for v in row.values()):
                        raise SystemExit(f"training diverged at step {self.step}")
                    sums, since = {}, time.time()
                if self.step % 100 == 0:
                    self.save()
        self.save()

    def save(self) -> None:
        new = self.args.work / "state.new"
        state = {
            "stage": self.args.stage,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [opt.state_dict() for opt in self.opts],
        }
        torch.save(state, new)
        new.replace(self.args.work / "state.pt")


def trained_weights(work: Path) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a run, and its stage and step as text."""
    state = torch.load(work / "state.pt", map_location="cpu", weights_only=True)
    return state["model"], f"stage {state['stage']}, step {state['step']}"


def options(model: str, *stages: str) -> argparse.ArgumentParser:
    """Return a parser of the options that both training scripts have. The last stage is the default."""
    parser = argparse.ArgumentParser(description=f"Train the built-in {model} from scratch.")
    parser.add_argument("--work", type=Path, required=True, help="folder of the state and the log")
    parser.add_argument("--stage", choices=stages, default=stages[-1])
    parser.add_argument("--steps", type=int, default=0, help="train until this step of the stage")
    parser.add_argument("--decay", type=int, default=0, help="last steps with a falling rate")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--every", type=int, default=50, help="steps per line of the log")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="another one shows other scenes")
    parser.add_argument("--start", type=Path, help="an exported folder to go on from, in a new --work")
    parser.add_argument("--export", type=Path, help="write the weights of --work and stop")
    return parser


def run(
    parser: argparse.ArgumentParser,
    train: Callable[[argparse.Namespace, str], None],
    export: Callable[[Path, Path], None],
) -> None:
    """Parse the command line. Then export the weights, or train on CUDA if available, else on the CPU."""
    args = parser.parse_args()
    if args.export:
        export(args.work, args.export)
        return
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    train(args, "cuda" if torch.cuda.is_available() else "cpu")
