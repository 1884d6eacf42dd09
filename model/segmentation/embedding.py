"""The embedding of an image: what an encoder made of it, for any number of prompts to decode."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Embedding:
    """An encoded image. Immutable, and all that decoding needs."""

    tensors: Mapping[str, Tensor]  # by the names of the SAM family, all on one device
    size: tuple[int, int]  # H, W of the image
    scaled: tuple[int, int]  # H, W of the image on the encoder's square, before padding

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def to(self, device: torch.device | str) -> "Embedding":
        """Return the embedding on `device`: itself if it is there already, else a copy."""
        if self.device == torch.device(device):
            return self
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})
