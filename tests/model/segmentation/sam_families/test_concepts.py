"""SAM 3 by concept, on a tiny random model in the layout that is published: detector and tracker in one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backend.commands.cli import main
from model.options import Options
from model.pipeline import VLSAM
from model.profiles import choose
from model.sam_stage import InstanceSearch
from model.segmentation import segmenter as segmenter_module
from model.segmentation.segmenter import Segmenter
from model.types import Box, Image, ModelLoadError, Prompt, PromptError, box_of
from model.vlm.vlm import VLM
from model.vlm_stage import TermMap
from tests.support import sam_families

PHRASES = ["dog", "traffic cone", "cat", "a dog with a hat", "bus"]
BOXES: list[Box] = [(20.0, 10.0, 100.5, 80.0), (0.0, 0.0, 130.0, 90.0), (5.5, 60.0, 30.0, 90.0)]
Boxes = list[Box] | None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam3")
    sam_families.saved("sam3_video", folder)
    return folder


@pytest.fixture(scope="module")
def sam3(folder: Path) -> Segmenter:
    return Segmenter.load(str(folder), device="cpu", concepts=True)


@pytest.fixture
def image() -> Image:
    return np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)


def theirs(image: Image, phrases: list[str], boxes: Boxes) -> list[dict[str, Any]]:
    """As transformers' processor, detector and post-processing find them, the image encoded for each.

    "masks" and "larger" are cut at a chance just above and just below a half: between them, rounding decides.
    """
    whole, processor = sam_families.built("sam3_video")
    found = []
    for index, phrase in enumerate(phrases):
        inputs = processor(
            images=image,
            text=phrase,
            input_boxes=None if boxes is None else [[list(boxes[index])]],
            return_tensors="pt",
        )
        sizes = inputs.pop("original_sizes").tolist()
        with torch.inference_mode():
            output = whole.detector_model(**inputs)
        cut = processor.post_process_instance_segmentation
        (one,) = cut(output, threshold=0.5, mask_threshold=0.5 + 1e-5, target_sizes=sizes)
        (other,) = cut(output, threshold=0.5, mask_threshold=0.5 - 1e-5, target_sizes=sizes)
        found.append({**one, "larger": other["masks"]})
    return found


@pytest.mark.parametrize(
    ("phrases", "boxes"), [(PHRASES, None), (PHRASES[:3], BOXES)], ids=["phrases", "with examples"]
)
def test_what_phrases_find_equals_transformers_own_path(
    sam3: Segmenter, image: Image, phrases: list[str], boxes: Boxes
) -> None:
    found = sam3.concepts(sam3.encode(image), phrases, boxes)
    wanted = theirs(image, phrases, boxes)
    assert len({len(each.scores) for each in found}) > 1  # the threshold keeps some and drops some
    for ours, library in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.scores, library["scores"].numpy(), atol=1e-6)
        small, large = (library[name].numpy() == 1 for name in ("masks", "larger"))
        assert (large & ~small).mean() < 0.001
        masks = np.array(list(ours.masks))
        assert (masks >= small).all()
        assert (masks <= large).all()


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_phrases_in_one_call_find_what_each_finds_alone(
    sam3: Segmenter, image: Image, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.segmentation.sam_families.transformers_sam.PHRASES_CPU", chunk)
    embedding = sam3.encode(image)
    for phrase, together in zip(PHRASES, sam3.concepts(embedding, PHRASES), strict=True):
        (alone,) = sam3.concepts(embedding, [phrase])
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-6)
        np.testing.assert_array_equal(list(together.masks), list(alone.masks))
    assert sam3.concepts(embedding, []) == []


def test_an_example_changes_what_is_found(sam3: Segmenter, image: Image) -> None:
    embedding = sam3.encode(image)
    every: dict[str, Any] = {"": None, **{str(box): [box] for box in BOXES}}
    scores = {name: sam3.concepts(embedding, ["dog"], boxes)[0].scores for name, boxes in every.items()}
    assert len({tuple(each.tolist()) for each in scores.values()}) == len(every)


def test_clicks_and_phrases_share_the_encoded_image(
    sam3: Segmenter, folder: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    family: Any = sam3.family
    encoder = family.model.vision_encoder.backbone
    assert family.detector.vision_encoder.backbone is encoder
    passes = []
    with_hook = encoder.register_forward_hook(lambda *_: passes.append(1))
    embedding = sam3.encode(image)
    before = {name: tensor.clone() for name, tensor in embedding.tensors.items()}
    sam3.concepts(embedding, PHRASES)
    (ours,) = sam3.decode(embedding, [Prompt.of((70, 40, 1))], multimask=True)
    with_hook.remove()
    assert len(passes) == 1
    assert all(torch.equal(embedding.tensors[name], tensor) for name, tensor in before.items())
    # For clicks alone nothing else is loaded or kept, and the answer is the same.
    clicked = Segmenter.load(str(folder), device="cpu")
    (same,) = clicked.decode(clicked.encode(image), [Prompt.of((70, 40, 1))], multimask=True)
    np.testing.assert_array_equal(ours.logits, same.logits)
    assert clicked.encode(image).nbytes < embedding.nbytes
    with pytest.raises(PromptError, match="without the part that takes noun phrases"):
        clicked.concepts(clicked.encode(image), ["dog"])


def test_the_detectors_weights_are_the_published_ones(sam3: Segmenter, folder: Path) -> None:
    given = load_file(folder / "model.safetensors")
    detector = sam3.family.detector.state_dict()  # type: ignore[attr-defined]
    assert {f"detector_model.{name}" for name in detector} <= given.keys()
    for name, weight in detector.items():
        assert torch.equal(weight, given[f"detector_model.{name}"]), name


def test_words_without_end_are_cut_and_odd_ones_are_no_error(sam3: Segmenter, image: Image) -> None:
    odd = ["dog " * 500, "", "<|endoftext|>", "犬", "\0"]
    for found in sam3.concepts(sam3.encode(image), odd):
        assert len(found.masks) == len(found.scores)


def looks(*terms: str) -> list[TermMap]:
    attention = np.zeros((6, 8), np.float32)
    attention[1:3, 2:6] = 1
    return [TermMap("What is there?", term, attention, presence=0.9) for term in terms]


def test_a_term_becomes_all_its_instances_with_their_boxes_as_prompts(sam3: Segmenter, image: Image) -> None:
    embedding = sam3.encode(image)
    (dog,) = sam3.concepts(embedding, ["dog"])
    found = InstanceSearch(sam3, embedding, Options()).from_phrases(
        looks("dog", "dog")
    )  # two questions named it
    assert len(found) == len(dog.masks) > 1
    for (look, instance), mask, score in zip(found, dog.masks, dog.scores, strict=True):
        assert look.term == "dog"
        np.testing.assert_array_equal(instance.mask, mask)
        assert instance.scores == {"concept": pytest.approx(float(score)), "presence": 0.9}
        assert instance.prompt.box == box_of(mask)
        assert not len(instance.prompt.points)


def test_a_persons_own_words_are_asked_for(sam3: Segmenter, image: Image) -> None:
    embedding = sam3.encode(image)
    look = replace(looks("dog")[0], phrase="brown dog on the left")
    (asked,) = sam3.concepts(embedding, [look.phrase])
    (bare,) = sam3.concepts(embedding, ["dog"])
    scores = [
        instance.scores["concept"]
        for _, instance in InstanceSearch(sam3, embedding, Options()).from_phrases([look])
    ]
    assert scores == pytest.approx(asked.scores.tolist())
    assert scores != pytest.approx(bare.scores.tolist())


def test_a_term_that_finds_nothing_is_tried_with_the_box_of_its_map(
    sam3: Segmenter, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = sam3.encode(image)
    box = (2 / 8 * 130, 1 / 6 * 90, 6 / 8 * 130, 3 / 6 * 90)
    monkeypatch.setattr(segmenter_module, "CONCEPT_SCORE", 0.0)
    alone, shown = (max(sam3.concepts(embedding, ["dog"], boxes)[0].scores) for boxes in (None, [box]))
    assert alone < shown
    monkeypatch.setattr(segmenter_module, "CONCEPT_SCORE", (alone + shown) / 2)
    assert InstanceSearch(sam3, embedding, Options(exemplars="never")).from_phrases(looks("dog")) == []
    found = InstanceSearch(sam3, embedding, Options()).from_phrases(looks("dog"))
    assert max(instance.scores["exemplar"] for _, instance in found) == shown
    nowhere = [TermMap("", "dog", np.zeros((6, 8), np.float32))]
    assert InstanceSearch(sam3, embedding, Options()).from_phrases(nowhere) == []


def test_every_image_gets_its_own_answer_whatever_came_before(sam3: Segmenter) -> None:
    images = np.random.default_rng(2).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8)
    embeddings = [sam3.encode(image) for image in images]
    first = [sam3.concepts(each, ["dog"])[0].scores for each in embeddings]
    again = [sam3.concepts(each, ["dog"])[0].scores for each in reversed(embeddings)]
    assert len({tuple(each.tolist()) for each in first}) == 3
    for one, other in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["sam2", "sam3_tracker", "built-in"])
def test_a_segmenter_that_takes_no_phrases_is_refused_before_the_vlm_loads(kind: str, tmp_path: Path) -> None:
    sam = None
    if kind != "built-in":
        sam_families.saved(kind, tmp_path)
        sam = str(tmp_path)
    profile = choose(vlm=str(tmp_path / "nowhere"), sam=sam)
    with pytest.raises(ModelLoadError, match=r"takes no noun phrases.*take SAM 3") as error:
        VLSAM.load(profile, "cpu", Options(localizer="concept"))
    assert "\n" not in str(error.value)


def test_a_segmenter_that_is_not_there_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"weights .*typo do not exist"):
        Segmenter.load(str(tmp_path / "typo"), device="cpu", concepts=True)


def test_the_pipeline_gives_the_listed_terms_to_it(sam3: Segmenter, vlm: VLM, scene: Any) -> None:
    vlsam = VLSAM(vlm, sam3, version="test", options=Options(localizer="concept", min_score=0))
    found = vlsam.annotate(scene.image)
    listed = {look.term for look in vlsam.maps(scene.image)}
    assert found
    assert {d.term for d in found} <= listed
    for detection in found:
        assert detection.evidence.scores.keys() <= {"concept", "exemplar"}
        assert detection.evidence.prompt.box == detection.box
        assert detection.evidence.question == Options().questions[0]
    corrected = vlsam.refine(vlsam.encode(scene.image), Prompt.of((200, 150, 1), box=found[0].box))
    assert corrected.mask[150, 200]


@pytest.mark.slow
def test_annotate_by_concept_from_the_command_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLSAM_LOCALIZER", "concept")
    assert main(["annotate", "model/builtin/samples/scene-04.jpg", "--json"]) == 2
    assert "takes no noun phrases" in capsys.readouterr().err
    monkeypatch.setenv("VLSAM_SAM", str(folder))
    assert main(["annotate", "model/builtin/samples/scene-04.jpg", "--json"]) == 0
    assert '"concept": 0.' in capsys.readouterr().out
