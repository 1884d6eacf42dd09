"""Define the embedding of an image. Importing this module loads neither torch nor a SAM family."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Embedding:
    """An encoded image, with everything that decoding needs. Immutable."""

    #: by the SAM family's names, all on one device
    tensors: Mapping[str, "torch.Tensor"] = field(repr=False)
    #: H, W of the image
    size: tuple[int, int]
    #: H, W of the image on the encoder's square, before padding
    scaled: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def device(self) -> "torch.device":
        return next(iter(self.tensors.values())).device

    def to(self, device: "torch.device | str") -> "Embedding":
        """Return this embedding on a device; itself if it is there already."""
        import torch

        if self.device == torch.device(device):
            return self
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})
