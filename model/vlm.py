"""A vision-language model answers a question about an image, and says where it looked for each word."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from model import attention, grids
from model.types import AttentionError, Image, ModelLoadError

MAX_NEW_TOKENS = 256


@dataclass(frozen=True, eq=False)
class Answer:
    text: str
    ends: tuple[int, ...]  # for each token of the answer, where its characters end in `text`
    first: int  # position of the answer's first token in the sequence
    grid: grids.Grid
    capture: attention.Capture

    def rows(self, start: int, end: int) -> range:
        """Positions in the sequence of the tokens that spell the characters [start, end) of `text`."""
        begins = (0, *self.ends[:-1])
        hits = [i for i, (a, b) in enumerate(zip(begins, self.ends, strict=True)) if a < end and b > start]
        if not hits:
            raise AttentionError(f"no token spells characters {start} to {end} of the answer")
        return range(self.first + hits[0], self.first + hits[-1] + 1)


class VLM:
    """Any model of transformers' AutoModelForImageTextToText whose token grid is known (model/grids.py)."""

    def __init__(self, model: Any, processor: Any) -> None:
        grids.check_family(model.config.model_type)
        model.set_attn_implementation({"text_config": attention.IMPLEMENTATION})
        self._model = model.eval()
        self._processor = processor

    @classmethod
    def load(cls, name: str, *, device: str, four_bit: bool = False) -> "VLM":
        """Load a hub id or a local folder. Raises ModelLoadError with one sentence on what to do."""
        if looks_local(name) and not Path(name).is_dir():
            raise ModelLoadError(f"the VLM folder {name} does not exist")
        quantized = None
        if four_bit:
            quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
        # Half precision on a CPU is slower than single and some kernels lack it.
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            config = AutoConfig.from_pretrained(name)
            grids.check_family(config.model_type)
            processor = AutoProcessor.from_pretrained(name)
            model = AutoModelForImageTextToText.from_pretrained(
                name, config=config, dtype=dtype, device_map=device, quantization_config=quantized
            )
        except ModelLoadError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelLoadError(f"the VLM {name} cannot be loaded: {reason}") from error
        return cls(model, processor)

    @torch.inference_mode()
    def answer(self, image: Image, question: str) -> Answer:
        """Ask about an image (H, W, 3); greedy, so the same image gives the same answer."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = self._processor(text=[prompt], images=[PILImage.fromarray(image)], return_tensors="pt").to(
            self._model.device
        )
        first = inputs["input_ids"].shape[1]
        with attention.capturing() as capture:
            ids = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        # The last token (the end, as a rule) was never an input, so it has no row.
        said = ids[0, first:].tolist()
        tokenizer = self._processor.tokenizer
        decoded = [tokenizer.decode(said[: i + 1], skip_special_tokens=True) for i in range(len(said))]
        return Answer(
            text=decoded[-1] if decoded else "",
            ends=tuple(len(text) for text in decoded[:-1]),
            first=first,
            grid=grids.grid_of(self._model, inputs),
            capture=capture,
        )

    @torch.inference_mode()
    def attention_maps(
        self,
        answer: Answer,
        spans: Sequence[tuple[int, int]],
        *,
        row: str = "own",
        head_weights: bool = True,
        regularise: bool = True,
    ) -> NDArray[np.float32]:
        """Attention of each span of the answer's characters to the image: float32 (n, rows, columns).

        `row` says whose attention is meant: "own" is that of the tokens that spell the span (the
        paper's), averaged; "asking" that of the position before them, which predicted the first.
        """
        wanted: list[list[int]] = []
        for start, end in spans:
            positions = answer.rows(start, end)
            wanted.append([positions[0] - 1] if row == "asking" else list(positions))
        unique = sorted({position for rows in wanted for position in rows})
        if not unique:
            return np.zeros((0, answer.grid.rows, answer.grid.columns), np.float32)
        rolled = attention.flow(answer.capture, unique, head_weights=head_weights, regularise=regularise)
        on_image = rolled[:, torch.from_numpy(answer.grid.tokens).to(rolled.device)].cpu().numpy()
        place = {position: i for i, position in enumerate(unique)}
        maps = [on_image[[place[p] for p in rows]].mean(0) for rows in wanted]
        return np.stack(maps).reshape(-1, answer.grid.rows, answer.grid.columns).astype(np.float32)


def looks_local(name: str) -> bool:
    """Whether a model name is meant as a path: a hub id has one slash at most and starts with a word."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()
