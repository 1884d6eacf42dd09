"""Compute baseline maps from vision alone: the vision tower's attention, and a ViT classifier's rollout."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.vision_utils import get_vision_window_index

from model.attention.capture import Capture
from model.attention.layer_attention import received
from model.attention.token_grids import Grid
from model.profiles import FOLDER
from model.types import AttentionError, Image, ModelLoadError, first_line, refused
from model.weights import hub
from model.weights.names import is_local
from model.weights.out_of_memory import out_of_memory


def tower_map(model: Any, inputs: Any, capture: Capture, grid: Grid) -> NDArray[np.float32]:
    """Return a map of the attention to the image's patches in the vision tower's last layer.

    The map is float32 (rows, columns). The attention is the class token's, or the mean of all tokens if there
    is none. Raises AttentionError for a family whose patches do not fill one plane of the grid.
    """
    plane = grid.planes[0].tokens
    rows, columns = plane.shape
    parts = received(capture, rows * columns)
    vision = model.config.vision_config
    merge = getattr(vision, "spatial_merge_size", 1)
    values = torch.cat([part.flatten() for part in parts])
    if len(values) == rows * columns * merge**2:
        values = values.reshape(-1, merge**2).mean(1)
    if len(values) != rows * columns or len(grid.planes) != 1:
        raise AttentionError(
            f"the vision tower of {model.config.model_type!r} models has {len(values)} patches for a grid of "
            f"{rows} x {columns} tokens, so its own attention cannot be shown; choose another recipe"
        )
    if model.config.model_type == "qwen2_5_vl":
        # This tower orders tokens by window: restore the order of the image.
        order, _ = get_vision_window_index(
            inputs["image_grid_thw"],
            spatial_merge_size=merge,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        values = values[torch.argsort(order.to(values.device))]
    attention = np.zeros((1, inputs["input_ids"].shape[1]), np.float32)
    attention[0, plane.ravel()] = values.float().cpu().numpy()
    return np.asarray(grid.spread(attention)[0])


class Classifier:
    """An image classifier of the ViT kind, such as google/vit-large-patch32-384."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model.eval(), processor
        self._classes: dict[str, int] = {}
        for index, names in model.config.id2label.items():
            for name in str(names).split(","):  # ImageNet gives synonyms with commas
                self._classes.setdefault(name.strip().lower(), int(index))

    @classmethod
    def load(cls, name: str, *, device: str, folder: Path = FOLDER) -> "Classifier":
        """Load a classifier by local folder or hub id. Download missing files. Raises ModelLoadError."""
        path = Path(name).expanduser() if is_local(name) else hub.ensure(name, folder)
        try:
            processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
            # Only the eager implementation gives attention that gradients can be taken of.
            model = AutoModelForImageClassification.from_pretrained(
                path, attn_implementation="eager", dtype=torch.float32, use_safetensors=True
            )
        except Exception as error:
            raise ModelLoadError(
                f"the classifier {path.name} cannot be loaded: {first_line(error)}"
            ) from error
        return cls(model.to(device), processor)

    def class_of(self, name: str) -> int | None:
        """Return the index of the class with this name, ignoring case; None if there is none."""
        return self._classes.get(name.strip().lower())

    def rollout(self, image: Image, class_index: int) -> NDArray[np.float32]:
        """Return the class token's row of the gradient-weighted rollout: float32 (rows, columns), at least 0.

        R <- R + A R over layers, where A is attention times its gradient for the class, positive part, mean
        over heads (Chefer et al., arXiv 2103.15679, section 3). Raises ImageRefused, and AttentionError for a
        classifier without a class token before a square of patches.
        """
        try:
            inputs = self._processor(images=PILImage.fromarray(image), return_tensors="pt")
        except Exception as error:
            if out_of_memory(error):
                raise
            raise refused("the classifier", image, first_line(error)) from error
        inputs = inputs.to(self._model.device)
        with torch.enable_grad():
            output = self._model(**inputs, output_attentions=True)
            layers: list[torch.Tensor] = list(getattr(output, "attentions", None) or ())
            count = layers[0].shape[-1] if layers else 0
            side = int(max(0, count - 1) ** 0.5)
            if not side or side**2 + 1 != count:
                raise AttentionError(
                    f"{self._model.config.model_type!r} classifiers have no class token before a square of "
                    "patches, which attention rollout needs; use a ViT such as google/vit-large-patch32-384"
                )
            gradients = torch.autograd.grad(output.logits[0, class_index], layers)
        rolled = torch.eye(count, device=layers[0].device)
        for weights, gradient in zip(layers, gradients, strict=True):
            rolled = rolled + (weights[0].detach() * gradient[0]).clamp(min=0).mean(0) @ rolled
        return rolled[0, 1:].reshape(side, side).float().cpu().numpy()
