"""Choose the device to compute on, before anything is loaded."""

import torch

from model.profiles import DEVICE_MAPS
from model.types import ModelLoadError

KINDS = ("cpu", "cuda", "mps", "xpu")
_CALLED = {"cuda": "GPU of NVIDIA or AMD", "mps": "GPU of Apple", "xpu": "GPU of Intel"}


def choose(name: str) -> str:
    """Return the name of a torch device, or of a device map of transformers, after a check.

    "auto" becomes "cuda" if such a GPU is there, else "cpu". Raises ModelLoadError for an unknown name, or a
    device that is not on this machine.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name in DEVICE_MAPS:
        return name
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in KINDS:
        raise ModelLoadError(
            f"{name!r} is not a device: choose auto, {', '.join(KINDS)}, one of several such as cuda:1, or "
            f"{', '.join(DEVICE_MAPS[1:])}"
        )
    count = _count(device.type)
    if not count:
        raise ModelLoadError(
            f"the device {name} is not there: PyTorch {torch.__version__} finds no {_CALLED[device.type]} on "
            "this machine; check its driver (in a container, whether it was given the device), or choose "
            "auto or cpu"
        )
    if (device.index or 0) >= count:
        last = f"{device.type}:{count - 1}"
        raise ModelLoadError(
            f"the device {name} is not there: this machine has {count} of that kind, and the last is {last}"
        )
    return name


def _count(kind: str) -> int:
    """Count the devices of a kind that PyTorch can use."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    library = getattr(torch, kind)
    return library.device_count() if library.is_available() else 0
