from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification
from transformers import ViTImageProcessor as Processor

from model.attention.baseline_maps import Classifier
from model.builtin.scenes import Scene
from model.types import AttentionError, Image, ModelLoadError
from model.vlm.vlm import VLM

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue, navy": (0, 0, 255)}
NAMES = [*COLOURS, "nothing"]  # without it, a class could be told by what is not there
CELLS, CELL = 4, 8  # an image is 4 x 4 patches of 8 pixels


def patch_of(rng: np.random.Generator, colours: list[tuple[int, int, int]]) -> tuple[Image, list[int]]:
    """Grey noise with one patch of each colour, and the cells where they are."""
    side = CELLS * CELL
    image = rng.integers(90, 160, (side, side, 3)).astype(np.uint8)
    cells = rng.choice(CELLS**2, len(colours), replace=False).tolist()
    for cell, colour in zip(cells, colours, strict=True):
        y, x = cell // CELLS * CELL, cell % CELLS * CELL
        image[y : y + CELL, x : x + CELL] = colour
    return image, cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT that learned within seconds which colour a patch of noise has."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        image_size=CELLS * CELL, patch_size=CELL, id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    processor = Processor(size={"height": CELLS * CELL, "width": CELLS * CELL})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        classes = rng.integers(0, 4, 32)
        drawn = [patch_of(rng, list(COLOURS.values())[c : c + 1]) for c in classes]
        pixels = processor(images=[image for image, _ in drawn], return_tensors="pt")["pixel_values"]
        loss = model(pixel_values=pixels, labels=torch.from_numpy(classes)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    place = tmp_path_factory.mktemp("vit")
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


@pytest.mark.slow
def test_rollout_of_a_classifier_finds_what_the_class_is_about(folder: Path) -> None:
    """The map of a colour's class has its maximum on the patch of that colour; another class's is another."""
    classifier, rng = Classifier.load(str(folder), device="cpu"), np.random.default_rng(1)
    hits = []
    for turn in range(30):
        name, colour = list(COLOURS.items())[turn % 3]
        image, (cell,) = patch_of(rng, [colour])
        number = classifier.class_of(name.split(",")[0])
        assert number == turn % 3
        found = classifier.rollout(image, number)
        assert found.shape == (CELLS, CELLS)
        assert (found >= 0).all()
        assert not np.allclose(found, classifier.rollout(image, 3))
        hits.append(int(found.argmax()) == cell)
    assert np.mean(hits) > 0.8  # by chance 1 in 16


@pytest.mark.slow
def test_a_class_is_found_by_any_of_its_synonyms(folder: Path) -> None:
    classifier = Classifier.load(str(folder), device="cpu")
    assert classifier.class_of("Navy") == classifier.class_of("blue") == 2
    assert classifier.class_of("car") is None


def test_a_classifier_without_patches_is_refused(folder: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    model = ResNetForImageClassification(config)
    with pytest.raises(AttentionError, match="no class token"):
        Classifier(model, Processor()).rollout(np.zeros((32, 32, 3), np.uint8), 0)


def test_a_missing_classifier_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        Classifier.load(str(tmp_path), device="cpu")


def test_the_towers_own_map_is_what_its_patches_get(vlm: VLM, scene: Scene) -> None:
    """Against eager attention of the last layer, put into the image's order by the model's own windows."""
    answer = vlm.answer(scene.image, "List all objects in the image.", vision=True)
    assert answer.vision is not None
    assert answer.vision.shape == answer.grid.shape
    # Rows of attention sum to 1, so the mean over rows that all patches get sums to 1; a token has four.
    assert answer.vision.sum() * 4 == pytest.approx(1, abs=1e-4)
    assert answer.vision.std() > 0
