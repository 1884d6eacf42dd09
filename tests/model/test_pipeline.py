from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageClassification, ViTConfig, ViTImageProcessor

from model.attention.baseline_maps import Classifier
from model.builtin.measure import clicks, middle, paste_scene
from model.builtin.scenes import Scene, draw_scene
from model.options import ASK, Options, Vocabulary
from model.pipeline import VLSAM
from model.profiles import PROFILES, choose
from model.recipes import RECIPES
from model.segmentation.embedding import Embedding
from model.segmentation.non_maximum_suppression import iou
from model.segmentation.segmenter import Segmenter
from model.types import AttentionError, GroundingError, Image, ModelLoadError, Prompt, PromptError, box_of
from model.versions import segmenter_version_of, version_of
from model.views import corner_views
from model.vlm.questions import questions
from model.vlm.vlm import VLMAnswer


@pytest.mark.slow
def test_annotate_gives_named_masks_with_their_evidence(vlsam: VLSAM, scene: Scene) -> None:
    found = vlsam.annotate(scene.image)
    assert found
    for detection in found:
        assert detection.term in vlsam.answer_text(scene.image)
        assert detection.mask.shape == scene.image.shape[:2]
        assert detection.mask.any()
        assert 0 <= detection.score <= 1
        assert detection.evidence.prompt.labels.tolist() == [1, 0]
        assert detection.evidence.model_version == "test"


@pytest.mark.slow
def test_views_find_objects_too_and_say_where_they_looked(vlsam: VLSAM, scene: Scene) -> None:
    found = vlsam.with_options(Options(views="corners")).annotate(scene.image)
    assert {d.term for d in vlsam.annotate(scene.image)} <= {d.term for d in found}
    height, width = scene.image.shape[:2]
    for detection in found:
        assert detection.mask.shape == (height, width)
        assert detection.evidence.view in corner_views(width, height)


@pytest.mark.slow
def test_the_embedding_of_the_whole_image_may_be_given(
    vlsam: VLSAM, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, encoded = vlsam.encode(scene.image), list[tuple[int, ...]]()

    def encode(segmenter: Segmenter, image: Image) -> Embedding:
        encoded.append(image.shape)
        return real(segmenter, image)

    real = Segmenter.encode
    monkeypatch.setattr(Segmenter, "encode", encode)
    cornered = vlsam.with_options(Options(views="corners"))
    found = cornered.annotate(scene.image, embedding=embedding)
    assert encoded  # of the corners, and of the whole image not again:
    assert all(shape < scene.image.shape for shape in encoded)
    assert [d.term for d in found] == [d.term for d in cornered.annotate(scene.image)]
    assert scene.image.shape in encoded


@pytest.mark.slow
def test_several_questions_are_merged_by_name(vlsam: VLSAM, scene: Scene) -> None:
    twice = vlsam.with_options(Options(questions=("List all objects in the image.",) * 2))
    once = vlsam.annotate(scene.image)
    assert [d.term for d in twice.annotate(scene.image)] == [d.term for d in once]
    assert len(twice.maps(scene.image)) == 2 * len(vlsam.maps(scene.image))


def test_a_model_that_proposes_no_questions_cannot_be_asked_to(vlsam: VLSAM, scene: Scene) -> None:
    with pytest.raises(AttentionError, match="proposed none"):
        vlsam.with_options(Options(questions=ASK)).annotate(scene.image)


@pytest.mark.slow
def test_boxes_alone_need_a_model_that_writes_them(vlsam: VLSAM, scene: Scene) -> None:
    with pytest.raises(GroundingError, match="without boxes"):
        vlsam.with_options(Options(localizer="boxes")).annotate(scene.image)
    both = vlsam.with_options(Options(localizer="both")).annotate(scene.image)
    assert [d.term for d in both] == [d.term for d in vlsam.annotate(scene.image)]


def test_a_box_that_the_vlm_writes_becomes_a_mask(
    vlsam: VLSAM, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in model was never taught boxes, so here its answer is that of one that was."""
    thing = max(scene.objects, key=lambda thing: int(thing.visible.sum()))
    named = (thing.name, box_of(thing.visible))
    monkeypatch.setattr(vlsam.vlm, "boxes", lambda image, terms: ("as JSON", [named]))
    (detection,) = vlsam.with_options(Options(localizer="boxes")).annotate(scene.image)
    assert detection.term == thing.name
    assert iou(detection.mask, thing.visible) > 0.6
    assert detection.evidence.prompt.box == named[1]
    assert detection.evidence.question == vlsam.vlm.box_question()


@pytest.mark.slow
def test_terms_that_are_not_there_when_asked_again_go(
    vlsam: VLSAM, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in model answers neither yes nor no, so here the chances are given."""
    names = [look.term for look in vlsam.maps(scene.image)]
    chances = np.linspace(0.2, 0.9, len(names), dtype=np.float32)
    monkeypatch.setattr(vlsam.vlm, "presence", lambda image, names: chances)
    found = vlsam.with_options(Options(presence=0.5)).annotate(scene.image)
    sure = [name for name, chance in zip(names, chances, strict=True) if chance >= 0.5]
    assert {d.term for d in found} <= set(sure) != set(names)
    assert all("presence" in d.evidence.scores for d in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"contrast": "background"}, {"contrast": "terms"}, {"cosine": True}, {"smooth": 1.0}, {"box": True},
        {"logits": True}, {"refine": False}, {"source": "vision"}, {"source": "cosine"},
    ],
)  # fmt: skip
def test_every_switch_of_a_recipe_changes_something(
    vlsam: VLSAM, scene: Scene, change: dict[str, Any]
) -> None:
    paper, other = (
        vlsam.with_options(Options(recipe=recipe))
        for recipe in (RECIPES["paper"], replace(RECIPES["paper"], **change))
    )
    one, two = paper.annotate(scene.image), other.annotate(scene.image)
    maps = (paper.maps(scene.image), other.maps(scene.image))
    assert [d.score for d in one] != [d.score for d in two] or any(
        not np.allclose(a.attention, b.attention) for a, b in zip(*maps, strict=True)
    )


@pytest.mark.slow
def test_a_term_may_have_points_of_its_own(vlsam: VLSAM, scene: Scene) -> None:
    term = vlsam.annotate(scene.image)[0].term
    options = Options(points="pair", term_points=((term, "peak"),))
    for detection in vlsam.with_options(options).annotate(scene.image):
        assert detection.evidence.prompt.labels.tolist() == ([1] if detection.term == term else [1, 0])


def test_a_vocabulary_goes_into_the_question_where_the_options_want_it(vlsam: VLSAM, scene: Scene) -> None:
    plain, names = Options().questions[0], ("dog", "traffic cone")
    asked = {mode: questions(lambda _: "", Options(vocabulary=mode), names) for mode in get_args(Vocabulary)}
    assert asked["open"] == (plain,)
    assert asked["project"] == (f"{plain} Name only these, where they are there: dog, traffic cone.",)
    assert asked["both"] == asked["open"] + asked["project"]
    assert questions(lambda _: "", Options(vocabulary="both")) == (plain,)


@pytest.mark.slow
def test_every_question_gets_the_vocabulary_and_the_model_hears_it(
    vlsam: VLSAM, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    real = vlsam.vlm.answer

    def answer(image: Image, question: str, **more: Any) -> VLMAnswer:
        heard.append(question)
        return real(image, question, **more)

    monkeypatch.setattr(vlsam.vlm, "answer", answer)
    options = Options(questions=("What is there?", "Who is there?"), vocabulary="project", views="corners")
    vlsam.with_options(options).annotate(scene.image, vocabulary=("dog",))
    assert len(heard) == 10  # five views
    assert all(question.endswith(" Name only these, where they are there: dog.") for question in heard)


def test_a_vocabulary_is_bounded_and_stays_on_its_line(vlsam: VLSAM, scene: Scene) -> None:
    names = ["dog", "dog", "", " ", "a\n\nb\x1b[2J", "x" * 1000, "{}", *map(str, range(5000))]
    (question,) = questions(lambda _: "", Options(vocabulary="project"), names)
    assert "there: dog, a b[2J, " + "x" * 60 + ", {}, 0, 1," in question
    assert len(question) < 1200
    assert question.isprintable()


def test_similarity_is_one_for_the_same_name_and_in_no_order(vlsam: VLSAM) -> None:
    names = ["dog", "cat", "apple"]
    likeness = vlsam.similarity(names, names)
    assert likeness.dtype == np.float32
    assert np.allclose(np.diag(likeness), 1, atol=1e-5)
    assert np.allclose(likeness, likeness.T, atol=1e-5)
    assert (np.abs(likeness) <= 1 + 1e-5).all()
    apple_tree = vlsam.similarity(["apple tree"], names)[0]
    assert apple_tree.argmax() == 2
    assert likeness[0, 1] < apple_tree[2] < 1


def test_similarity_of_nothing(vlsam: VLSAM) -> None:
    assert vlsam.similarity([], ["dog"]).shape == (0, 1)
    assert vlsam.similarity(["dog"], []).shape == (1, 0)
    assert vlsam.similarity([], []).shape == (0, 0)


def test_a_classifier_is_needed_for_its_rollout(vlsam: VLSAM, scene: Scene) -> None:
    with pytest.raises(ModelLoadError, match="classifier"):
        vlsam.with_options(Options(recipe=RECIPES["vit-rollout"])).annotate(scene.image)


@pytest.mark.slow
def test_terms_that_are_no_class_of_the_classifier_have_no_map(vlsam: VLSAM, scene: Scene) -> None:
    name = vlsam.maps(scene.image)[0].term
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
        patch_size=8, id2label={0: f"{name}, thing", 1: "other"}, label2id={name: 0, "other": 1},
    )  # fmt: skip
    size = {"height": 32, "width": 32}
    classifier = Classifier(
        AutoModelForImageClassification.from_config(config, attn_implementation="eager"),
        ViTImageProcessor(size=size),
    )
    options = Options(recipe=RECIPES["vit-rollout"])
    rollout = VLSAM(vlsam.vlm, vlsam.segmenter, version="test", options=options, classifier=classifier)
    looks = rollout.maps(scene.image)
    assert [look.term for look in looks] == [name]
    assert looks[0].attention.shape == (4, 4)


@pytest.mark.slow
def test_annotate_is_deterministic(vlsam: VLSAM, scene: Scene) -> None:
    one, other = vlsam.annotate(scene.image), vlsam.annotate(scene.image)
    assert [d.term for d in one] == [d.term for d in other]
    assert all((a.mask == b.mask).all() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("shape", [(28, 28), (40, 900), (900, 40)])
def test_an_empty_image_of_any_shape_is_no_error(vlsam: VLSAM, shape: tuple[int, int]) -> None:
    for detection in vlsam.annotate(np.full((*shape, 3), 200, np.uint8)):
        assert detection.mask.shape == shape


def test_a_click_on_an_object_answers_with_that_object(vlsam: VLSAM, scene: Scene) -> None:
    thing = scene.objects[-1]
    x, y = middle(thing.visible)
    detection = vlsam.refine(vlsam.encode(scene.image), Prompt.of((x, y, 1)))
    assert detection.mask[int(y), int(x)]


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 419), st.integers(0, 299)), st.integers(0, 1), min_size=1, max_size=4
    ),
    st.booleans(),
)
def test_every_click_is_on_its_side_of_the_answer(
    vlsam: VLSAM, scene: Scene, clicks: dict[tuple[int, int], int], from_mask: bool
) -> None:
    start = scene.objects[0].visible if from_mask else None
    prompt = Prompt.of(*((x + 0.5, y + 0.5, label) for (x, y), label in clicks.items()), mask=start)
    mask = vlsam.refine(vlsam.encode(scene.image), prompt).mask
    assert all(mask[y, x] == bool(label) for (x, y), label in clicks.items())


@pytest.mark.slow
def test_corrective_clicks_improve_a_mask(vlsam: VLSAM) -> None:
    """Five clicks on the largest error each, as an annotator gives them: RITM's protocol."""
    rng = np.random.default_rng(3)
    reached = [clicks(vlsam, scene, scene.objects[0], 5) for scene in (paste_scene(rng) for _ in range(6))]
    first, *_, last = np.mean(reached, 0)
    assert last > first


# Phrases


@pytest.fixture(scope="module")
def pasted() -> list[Scene]:
    """Scenes of single things of each kind."""
    rng = np.random.default_rng(5)
    scenes = [paste_scene(rng) for _ in range(8)]
    return [s for s in scenes if len({thing.name for thing in s.objects}) == len(s.objects) > 1][:3]


@pytest.mark.slow
def test_a_phrase_finds_the_one_thing_that_it_names(vlsam: VLSAM, pasted: list[Scene]) -> None:
    overlaps, others = [], []
    for scene in pasted:
        embedding = vlsam.encode(scene.image)
        for thing in scene.objects:
            (found,) = vlsam.find(scene.image, f"the {thing.name} over there", embedding=embedding)
            assert found.term == thing.name
            assert found.evidence.question == f"Where is the {thing.name} over there?"
            assert found.evidence.prompt.labels.tolist() == [1, 0]
            overlaps.append(iou(found.mask, thing.visible))
            others.append(max(iou(found.mask, o.visible) for o in scene.objects if o is not thing))
    assert len(overlaps) >= 6
    assert np.mean(overlaps) > 0.7
    assert np.mean(others) < 0.2


@pytest.mark.slow
def test_a_phrase_in_the_plural_finds_all_of_a_kind(vlsam: VLSAM) -> None:
    scene = draw_scene(
        np.random.default_rng(8), width=480, height=320, count=2, degrade=False, names=("dog",)
    )
    assert len(vlsam.find(scene.image, "dog")) == 1
    several = vlsam.find(scene.image, "both dogs")
    assert all(max(iou(d.mask, dog.visible) for d in several) > 0.6 for dog in scene.objects)


@pytest.mark.slow
def test_several_things_may_be_asked_for(vlsam: VLSAM, pasted: list[Scene]) -> None:
    names = [thing.name for thing in pasted[0].objects][:2]
    assert {d.term for d in vlsam.find(pasted[0].image, ", ".join(names))} == set(names)


@pytest.mark.slow
def test_what_is_not_there_when_asked_is_not_found(
    vlsam: VLSAM, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in model answers neither yes nor no, so here the chance is given."""
    asked: list[str] = []

    def presence(image: Image, names: list[str]) -> Any:
        asked.extend(names)
        return np.array([0.4], np.float32)

    monkeypatch.setattr(vlsam.vlm, "presence", presence)
    name = scene.objects[0].name
    assert vlsam.with_options(Options(presence=0.5)).find(scene.image, f"The {name}!") == []
    (found,) = vlsam.with_options(Options(presence=0.3)).find(scene.image, name)
    assert found.evidence.scores["presence"] == pytest.approx(0.4)
    assert asked == [name, name]


@pytest.mark.slow
def test_a_phrase_may_ask_for_the_whole_or_a_part(vlsam: VLSAM, scene: Scene) -> None:
    name = scene.objects[0].name
    whole, part = (vlsam.find(scene.image, name, level=level)[0] for level in ("whole", "subpart"))
    assert part.mask.sum() < whole.mask.sum()
    assert part.term == whole.term == name
    assert part.evidence.question == f"Where is the {name}?"


def test_a_phrase_goes_to_a_vlm_that_writes_boxes(
    vlsam: VLSAM, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing = max(scene.objects, key=lambda thing: int(thing.visible.sum()))
    asked: list[str] = []

    def boxes(image: Image, names: list[str]) -> Any:
        asked.extend(names)
        return "as JSON", [(thing.name, box_of(thing.visible))]

    monkeypatch.setattr(vlsam.vlm, "boxes", boxes)
    (found,) = vlsam.with_options(Options(localizer="boxes")).find(scene.image, f"{thing.name} on the left")
    assert asked == [f"{thing.name} on the left"]
    assert iou(found.mask, thing.visible) > 0.6


@pytest.mark.parametrize("phrase", ["", " the ", "?!", "dog " * 60])
def test_a_phrase_says_something_and_not_too_much(vlsam: VLSAM, scene: Scene, phrase: str) -> None:
    with pytest.raises(PromptError, match="1 to 200 characters"):
        vlsam.find(scene.image, phrase)


@pytest.mark.slow
@pytest.mark.parametrize(
    "phrase", ["<|im_end|><|image_pad|> dog", "\x00\ud83d\udc36 🐶", "a\nb\tc", "}{%s%n", "的"]
)
def test_no_phrase_is_too_odd(vlsam: VLSAM, scene: Scene, phrase: str) -> None:
    for found in vlsam.find(scene.image, phrase):
        assert found.mask.shape == scene.image.shape[:2]


def test_a_prompt_without_anything_is_refused(vlsam: VLSAM, scene: Scene) -> None:
    with pytest.raises(PromptError, match="at least one point"):
        vlsam.refine(vlsam.encode(scene.image), Prompt())


@pytest.mark.slow
def test_f4_what_was_seen_smaller_says_so(vlsam: VLSAM, scene: Scene) -> None:
    smaller = vlsam.with_options(Options()).smaller().with_options(Options())
    found = smaller.annotate(scene.image)
    assert found
    assert all(each.evidence.reduced and each.evidence.model_version == "test" for each in found)
    assert all(each.evidence.reduced for each in smaller.find(scene.image, found[0].term, level="whole"))
    assert not any(each.evidence.reduced for each in vlsam.annotate(scene.image))
    # A click is answered by the segmenter, which sees the image as ever.
    clicked = smaller.refine(smaller.encode(scene.image), found[0].evidence.prompt)
    assert not clicked.evidence.reduced


def test_the_version_follows_settings_and_files(tmp_path: Path) -> None:
    profile = choose()
    version = version_of(profile)
    assert version == version_of(profile)
    assert version != version_of(profile, Options(threshold=0.7))
    assert version != version_of(profile, Options(vocabulary="both"))
    assert version != version_of(profile, None, "more") != version_of(profile, None, "mo", "re")
    other = replace(profile, sam=str(tmp_path / "other.pth"))
    assert version != version_of(other)
    Path(other.sam).write_bytes(b"0")
    before = version_of(other)
    assert before != version_of(replace(profile, sam=str(tmp_path / "none.pth")))
    Path(other.sam).write_bytes(b"1")  # trained anew: the same name and size
    assert version_of(other) != before


def test_the_segmenters_version_follows_its_files_alone(tmp_path: Path) -> None:
    profile = choose()
    other = replace(profile, vlm="another/vlm", quantization="4bit", name="other", demo=False)
    assert segmenter_version_of(other) == segmenter_version_of(profile)
    by_concept = segmenter_version_of(profile, Options(localizer="concept"))
    assert by_concept != segmenter_version_of(profile, Options()) == segmenter_version_of(profile)
    files = [replace(profile, sam=str(tmp_path / name)) for name in ("a.pth", "b.pth")]
    for each, content in zip(files, (b"0", b"0"), strict=True):
        Path(each.sam).write_bytes(content)
    before = [segmenter_version_of(each) for each in (profile, *files)]
    assert len(set(before)) == 3
    Path(files[0].sam).write_bytes(b"1")  # trained anew: the same name and size
    assert segmenter_version_of(files[0]) not in before


def test_profiles_are_chosen_by_name_and_overridden() -> None:
    assert choose("gpu-8g", vlm="some/other-model").vlm == "some/other-model"
    assert choose("builtin").demo
    assert not choose("builtin", vlm="some/other-model").demo
    with pytest.raises(ModelLoadError, match=", ".join(PROFILES)):
        choose("gpu-3g")


def test_missing_weights_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        VLSAM.load(choose(vlm=str(tmp_path / "nowhere")), "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ModelLoadError, match="token grid of 'blip'"):
        VLSAM.load(choose(vlm=str(tmp_path)), "cpu")
