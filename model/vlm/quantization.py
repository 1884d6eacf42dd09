"""Choose the precision of a VLM's weights: dtype, and 4-bit or 8-bit decoder weights (bitsandbytes)."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from model.profiles import Dtype, Quantization
from model.types import ModelLoadError

log = logging.getLogger(f"vlsam.{__name__}")


@dataclass(frozen=True)
class Precision:
    dtype: Dtype = "auto"
    quantization: Quantization = "none"

    def torch_dtype(self, device: str) -> str:
        """Return the name of the weights' dtype. "auto" is float32 on a CPU and bfloat16 on other devices."""
        if self.dtype != "auto":
            return self.dtype
        # Half precision on a CPU is slower than single, and some kernels lack it.
        return "float32" if device == "cpu" else "bfloat16"

    def config(self, device: str) -> BitsAndBytesConfig | None:
        """Return the `quantization_config` for `from_pretrained`; None without quantization."""
        if self.quantization == "none":
            return None
        # bitsandbytes logs once per product that 8 bit computes in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(
            load_in_4bit=self.quantization == "4bit",
            load_in_8bit=self.quantization == "8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=self.torch_dtype(device),
            # Only the decoder, which has nearly all of the weights. With the tower in 4 bit as well, the
            # built-in model's maps moved ten times as far (correlation 0.992 instead of 0.9994).
            llm_int8_skip_modules=[r"(?!model\.(language_model|text_model)\.).*"],
        )

    def check(self, model: Any, name: str) -> None:
        """Log the share of quantized weights. Raises ModelLoadError if quantization changed no weights."""
        if self.quantization == "none":
            return
        # A uint8 holds two weights of 4 bit.
        sizes = [(p.numel() * (1 + (p.dtype == torch.uint8)), p.dtype) for p in model.parameters()]
        small = sum(size for size, dtype in sizes if dtype in (torch.uint8, torch.int8))
        if not small:
            raise ModelLoadError(f"the VLM {name} has no layer that {self.quantization} applies to: use none")
        share = 100 * small // sum(size for size, _ in sizes)  # embeddings and experts stay as they are
        log.info("%d %% of the VLM's weights are in %s.", share, self.quantization)


FULL = Precision()
