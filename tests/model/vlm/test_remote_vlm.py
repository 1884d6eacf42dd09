"""Another VLM lists, over real HTTP; the one at hand says where."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.builtin.scenes import Scene, draw_scene
from model.deadline import Deadline
from model.options import ASK, Options
from model.pipeline import VLSAM, prefetch_answers
from model.profiles import choose
from model.segmentation.non_maximum_suppression import iou
from model.types import AttentionError, RemoteVLMError
from model.versions import version_of
from model.vlm import remote_vlm
from model.vlm.remote_vlm import RemoteVLM
from tests.support import vlm_endpoint
from tests.support.vlm_endpoint import Lister


@pytest.fixture
def lister() -> Iterator[Lister]:
    with vlm_endpoint.listing() as running:
        yield running


def options(lister: Lister) -> Options:
    return Options(remote_vlm=RemoteVLM(lister.model, lister.url, lister.key))


def ask(lister: Lister, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> str:
    return RemoteVLM(lister.model, lister.url, lister.key).answer(image, "What is there?")


@pytest.mark.slow
def test_what_the_endpoint_names_is_masked_and_nothing_else(vlsam: VLSAM, lister: Lister) -> None:
    scene = draw_scene(np.random.default_rng(7), width=400, height=300, count=2, scale=(0.4, 0.5))
    one, other = scene.objects
    found = {}
    for thing in (one, other):
        lister.text = f"There is a {thing.name} in the picture."
        listed = vlsam.with_options(options(lister))
        (found[thing.name], *_) = detections = listed.annotate(scene.image)
        assert {d.term for d in detections} == {thing.name}
        assert listed.answer_text(scene.image) == lister.text
    assert iou(found[one.name].mask, one.visible) > 0.6
    assert iou(found[other.name].mask, other.visible) > 0.6
    assert {question for question, _ in lister.asked} == set(Options().questions)
    assert {size for _, size in lister.asked} == {(400, 300)}


def test_the_same_words_give_the_maps_of_the_models_own_answer(
    vlsam: VLSAM, scene: Scene, lister: Lister
) -> None:
    lister.text = vlsam.answer_text(scene.image)
    own, listed = vlsam.maps(scene.image), vlsam.with_options(options(lister)).maps(scene.image)
    assert [look.term for look in own] == [look.term for look in listed]
    for one, two in zip(own, listed, strict=True):
        assert np.allclose(one.attention, two.attention, atol=1e-4)


@pytest.mark.slow
def test_every_view_and_question_is_asked_also_ahead(vlsam: VLSAM, scene: Scene, lister: Lister) -> None:
    cornered = replace(options(lister), views="corners", questions=("Who?", "What?"), vocabulary="project")
    said = prefetch_answers(scene.image, cornered, ("dog",))
    assert said is not None
    assert [len(answers) for answers in said] == [2] * 5
    assert lister.asked[0][0] == "Who? Name only these, where they are there: dog."
    vlsam.with_options(cornered).annotate(scene.image, remote_answers=said)
    assert len(lister.asked) == 10
    assert prefetch_answers(scene.image, Options()) is None


def test_the_endpoint_proposes_the_questions_too(scene: Scene, lister: Lister) -> None:
    proposing = replace(options(lister), questions=ASK)
    with pytest.raises(AttentionError, match="proposed none"):
        prefetch_answers(scene.image, proposing)
    lister.text = "1. Who is there?\n2. What is there?"
    assert prefetch_answers(scene.image, proposing) == [
        [("Who is there?", lister.text), ("What is there?", lister.text)]
    ]


@pytest.mark.parametrize("text", ["<|im_end|><|image_pad|>", "[INST]", "\ud800\x00\x1b[2J", "no objects."])
def test_an_answer_of_nothing_or_of_special_tokens_finds_nothing(
    vlsam: VLSAM, scene: Scene, lister: Lister, text: str
) -> None:
    lister.text = text
    assert all("<" not in d.term for d in vlsam.with_options(options(lister)).annotate(scene.image))
    assert vlsam.vlm.answer(scene.image, "What?", forced_answer="<|im_end|>").text.strip() == ""


def test_a_long_answer_is_cut(scene: Scene, lister: Lister) -> None:
    lister.text = "dog, " * 5000
    assert ask(lister, scene.image) == ("dog, " * 5000)[: remote_vlm.MAX_TEXT]


@pytest.mark.parametrize(
    ("text", "ended", "said"),
    [
        ("<think>Is that a horse?</think>\n\ndog, cat", "stop", "dog, cat"),
        ("A horse?\n</thinking>dog, cat", "stop", "dog, cat"),
        ("dog, cat, umb", "length", "dog, cat, "),
        ("dog, cat, umb", "MAX_TOKENS", "dog, cat, "),
        ("dog, cat, umb", "stop", "dog, cat, umb"),
        ("<think>A horse?</think>dog, umb", "length", "dog, "),
        ("x" * 5000, "stop", "x" * remote_vlm.MAX_TEXT),
    ],
)
def test_what_counts_of_an_answer(scene: Scene, lister: Lister, text: str, ended: str, said: str) -> None:
    lister.text, lister.ended = text, ended
    assert ask(lister, scene.image) == said


@pytest.mark.parametrize(
    "text",
    ["<think>\nThe user wants a list. Maybe a horse", "<thinking>A horse</thinking>\n", "A horse</think>"],
)
@pytest.mark.parametrize("ended", ["stop", "length"])
def test_an_answer_of_nothing_but_thoughts_is_an_error(
    scene: Scene, lister: Lister, text: str, ended: str
) -> None:
    lister.text, lister.ended = text, ended
    with pytest.raises(RemoteVLMError, match="gave only thoughts within 256 tokens: use a model that"):
        ask(lister, scene.image)


def test_an_answer_that_was_cut_in_its_first_name_is_an_error(scene: Scene, lister: Lister) -> None:
    lister.text, lister.ended = "umb", "length"
    with pytest.raises(RemoteVLMError, match="cut after 256 tokens, before the end"):
        ask(lister, scene.image)


def test_no_thought_becomes_an_object(vlsam: VLSAM, scene: Scene, lister: Lister) -> None:
    lister.text = f"<think>The user wants a house.</think>{scene.objects[0].name}"
    assert {d.term for d in vlsam.with_options(options(lister)).annotate(scene.image)} <= {
        scene.objects[0].name
    }
    assert [look.term for look in vlsam.with_options(options(lister)).maps(scene.image)] == [
        scene.objects[0].name
    ]


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "refuses the key"),
        (404, "has no model 'big-vlm'"),
        (400, "must take images"),
        (307, "give the address that it leads to"),
        (429, "cannot answer now"),
        (503, "cannot answer now"),
    ],
)
def test_a_refusal_is_one_sentence_without_what_the_endpoint_wrote(
    scene: Scene, lister: Lister, status: int, sentence: str
) -> None:
    lister.status = status
    with pytest.raises(RemoteVLMError, match=sentence) as caught:
        ask(lister, scene.image)
    assert str(caught.value).startswith(f"the listing endpoint {lister.url} ")
    assert "\n" not in str(caught.value)
    assert lister.key not in str(caught.value)
    assert lister.tokens == ["Bearer sesame"]  # once, also where it sends elsewhere


@pytest.mark.parametrize(
    "raw", [b"", b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"[" * 100_000]
)
def test_something_else_than_a_chat_completion_is_said(scene: Scene, lister: Lister, raw: bytes) -> None:
    lister.raw = raw
    with pytest.raises(RemoteVLMError, match="does not answer with a chat completion"):
        ask(lister, scene.image)


@pytest.mark.parametrize("text", [None, "", " \n", ["dog"], 5])
def test_no_text_is_an_error_and_no_empty_list(scene: Scene, lister: Lister, text: object) -> None:
    lister.text = text
    with pytest.raises(RemoteVLMError, match="gave no text"):
        ask(lister, scene.image)


def test_an_endless_answer_is_refused(scene: Scene, lister: Lister) -> None:
    lister.raw = b" " * (remote_vlm.MAX_BYTES + 1)
    with pytest.raises(RemoteVLMError, match="more than 1000000 bytes"):
        ask(lister, scene.image)


def test_one_that_answers_byte_by_byte_meets_the_deadline(scene: Scene, lister: Lister) -> None:
    lister.drip.set()
    slow = RemoteVLM(lister.model, lister.url, lister.key)
    with pytest.raises(RemoteVLMError, match="did not answer in time"):
        slow.answer(scene.image, "What is there?", Deadline.after(0.5))


def test_nobody_at_the_address_is_said(scene: Scene) -> None:
    with vlm_endpoint.listing() as gone:
        pass
    with pytest.raises(RemoteVLMError, match="cannot be reached"):
        ask(gone, scene.image)


def test_a_password_in_netrc_is_not_sent(
    scene: Scene, lister: Lister, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hush\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert ask(lister, scene.image)
    with pytest.raises(RemoteVLMError, match="refuses the key"):
        RemoteVLM(lister.model, lister.url).answer(scene.image, "What is there?")
    assert lister.tokens == ["Bearer sesame", None]


def test_the_version_follows_the_model_that_lists_and_not_its_address_or_key(lister: Lister) -> None:
    def version(listing: RemoteVLM | None) -> str:
        return version_of(choose(), Options(remote_vlm=listing))

    one = RemoteVLM("big-vlm", "http://one/v1", "sesame")
    assert version(one) == version(RemoteVLM("big-vlm", "http://two/v1"))
    assert len({version(one), version(RemoteVLM("other", "http://one/v1")), version(None)}) == 3
    assert "sesame" not in repr(Options(remote_vlm=one))
