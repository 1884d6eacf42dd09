"""Optimizers, the learning-rate schedule, checkpoints and the log of both training scripts."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn

Losses = Callable[[], tuple[Tensor, dict[str, Tensor]]]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute plain attention: over short rows on a CPU it takes an eighth of SDPA's time."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    mixed: Tensor = (scores if bias is None else scores + bias).softmax(-1) @ v
    return mixed


def optimizers(model: nn.Module, is_matrix: Callable[[str], bool], lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the blocks, and AdamW for all else."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and is_matrix(name)]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int, decay: int) -> float:
    """Return the factor of the learning rate: warm-up, plateau, linear to zero in the last `decay` steps."""
    return min(1.0, (step + 1) / 200, max(0.0, (steps - step) / max(decay, 1)))


class Run:
    """A resumable run in a folder: `state.pt`, and `log.txt` with lines of mean losses."""

    def __init__(self, work: Path, stage: str, model: nn.Module, opts: list[torch.optim.Optimizer]) -> None:
        cv2.setNumThreads(1)
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.stage, self.model, self.opts = work, stage, model, opts
        self.step = 0
        file = work / "state.pt"
        if file.exists():
            state = torch.load(file, map_location="cpu", weights_only=True)
            model.load_state_dict(state["model"])
            if state["stage"] == stage:
                self.step = int(state["step"])
                for opt, saved in zip(opts, state["optimizers"], strict=True):
                    opt.load_state_dict(saved)
        self.peak = opts[0].defaults["lr"]

    def train(self, losses: Losses, *, steps: int, decay: int, every: int) -> None:
        sums: dict[str, list[float]] = {}
        since = time.time()
        with (self.work / "log.txt").open("a") as log:
            while self.step < steps:
                for opt in self.opts:
                    for group in opt.param_groups:
                        group["lr"] = self.peak * schedule(self.step, steps, decay)
                loss, parts = losses()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                for opt in self.opts:
                    opt.step()
                    opt.zero_grad(set_to_none=True)
                self.step += 1
                for key, value in parts.items():
                    sums.setdefault(key, []).append(float(value.detach()))
                if self.step % every == 0:
                    row: dict[str, Any] = {k: round(sum(v) / len(v), 4) for k, v in sums.items()}
                    row |= {"step": self.step, "s_per_step": round((time.time() - since) / every, 3)}
                    print(self.stage, json.dumps(row), file=log, flush=True)
                    if not all(math.isfinite(v) for v in row.values()):
                        raise SystemExit(f"training diverged at step {self.step}")
                    sums, since = {}, time.time()
                if self.step % 100 == 0:
                    self.save()
        self.save()

    def save(self) -> None:
        new = self.work / "state.new"
        state = {
            "stage": self.stage,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [opt.state_dict() for opt in self.opts],
        }
        torch.save(state, new)
        new.replace(self.work / "state.pt")


def trained_weights(work: Path) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a run, and its stage and step as text."""
    state = torch.load(work / "state.pt", map_location="cpu", weights_only=True)
    return state["model"], f"stage {state['stage']}, step {state['step']}"
