import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.answers.ml_backend import VLSAMBackend
from backend.answers.resources import Resources
from backend.runtime.embedding_cache import EmbeddingCache, embedding_key
from backend.runtime.job_queue import CLICK
from backend.runtime.retrying_model import RetryingModel
from backend.telemetry.metrics import Metrics
from model.deadline import NEVER
from model.pipeline import VLSAM
from model.segmentation.embedding import Embedding
from model.types import Image
from tests.support.embedding_figures import figures
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG
from tests.support.predictions import regions, task
from tests.support.stand_in import StandIn
from tests.support.waiting import wait_for

Make = Callable[..., Resources]


@dataclass(frozen=True, eq=False)
class Block:
    """In place of an embedding: as many bytes as a test wants, on whatever device."""

    name: str
    nbytes: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def to(self, device: torch.device | str) -> "Block":
        there = self.device == torch.device(device)
        return self if there else Block(self.name, self.nbytes, torch.device(device))


@dataclass
class Encoder:
    """Makes blocks for pictures, which are their names here."""

    device: torch.device
    sizes: dict[str, int] = field(default_factory=dict)
    encoded: list[str] = field(default_factory=list)

    def smaller(self) -> "Encoder":
        return self

    def encode(self, image: Any) -> Any:
        self.encoded.append(image)
        return Block(image, self.sizes.get(image, 10), self.device)


def retrying(encoder: Encoder) -> RetryingModel[Encoder]:
    return RetryingModel(encoder, Metrics(), lambda: None)


def kept(embeddings: EmbeddingCache, name: str) -> bool:
    return embeddings.handle(name).ready


def ask(embeddings: EmbeddingCache, encoder: Encoder, name: Any) -> Embedding:
    return embeddings.handle(name).get(retrying(encoder), name)


def cpu() -> Encoder:
    return Encoder(torch.device("cpu"))


def gpu() -> Encoder:
    return Encoder(torch.device("cuda"))


def test_an_image_is_encoded_once() -> None:
    embeddings, encoder = EmbeddingCache("sam", 100, m := Metrics()), cpu()
    first, second = (ask(embeddings, encoder, "cat") for _ in range(2))
    assert first is second
    assert encoder.encoded == ["cat"]
    assert figures(m) == {
        "hits host": 1, "hits device": 0, "misses": 1, "evictions host": 0, "evictions device": 0,
        "bytes host": 10, "bytes device": 0,
    }  # fmt: skip


def test_f3_the_longest_unused_goes_first_when_bytes_run_out() -> None:
    embeddings, encoder = EmbeddingCache("sam", 30, m := Metrics()), cpu()
    for name in ("a", "b", "c", "a", "d"):
        ask(embeddings, encoder, name)
    assert [kept(embeddings, name) for name in "abcd"] == [True, False, True, True]
    assert (figures(m)["evictions host"], figures(m)["bytes host"]) == (1, 30)


def test_f3_what_is_larger_than_the_cache_drives_nothing_out() -> None:
    embeddings, encoder = EmbeddingCache("sam", 30, Metrics()), Encoder(torch.device("cpu"), {"huge": 31})
    for name in ("a", "b", "huge"):
        ask(embeddings, encoder, name)
    assert [kept(embeddings, name) for name in ("a", "b", "huge")] == [True, True, False]


def test_a_cache_of_no_bytes_keeps_nothing_and_works() -> None:
    embeddings, encoder = EmbeddingCache("sam", 0, Metrics()), cpu()
    ask(embeddings, encoder, "a")
    ask(embeddings, encoder, "a")
    assert encoder.encoded == ["a", "a"]


def test_what_the_device_has_no_room_for_moves_to_the_host_and_back() -> None:
    embeddings, encoder = EmbeddingCache("sam", 160, m := Metrics()), gpu()  # 20 bytes on the device
    for name in "abc":
        assert ask(embeddings, encoder, name).device.type == "cuda"
    assert (figures(m)["bytes device"], figures(m)["bytes host"]) == (20, 10)
    assert ask(embeddings, encoder, "a").device.type == "cuda"  # and b goes to the host in its place
    assert (figures(m)["hits host"], figures(m)["evictions device"]) == (1, 2)
    assert (figures(m)["bytes device"], figures(m)["bytes host"]) == (20, 10)
    assert encoder.encoded == ["a", "b", "c"]


def test_what_is_too_large_for_the_device_tier_is_kept_by_the_host() -> None:
    embeddings, encoder = EmbeddingCache("sam", 160, m := Metrics()), Encoder(torch.device("cuda"), {"a": 21})
    assert ask(embeddings, encoder, "a").device.type == "cuda"
    assert ask(embeddings, encoder, "a").device.type == "cuda"
    assert (figures(m)["bytes device"], figures(m)["bytes host"]) == (0, 21)
    assert encoder.encoded == ["a"]


def test_f4_a_device_without_memory_keeps_no_embedding() -> None:
    embeddings, encoder = EmbeddingCache("sam", 160, m := Metrics()), gpu()
    for name in "ab":
        ask(embeddings, encoder, name)
    embeddings.leave_device()
    assert (figures(m)["bytes device"], figures(m)["bytes host"]) == (0, 20)
    assert ask(embeddings, encoder, "a").device.type == "cuda"
    assert encoder.encoded == ["a", "b"]


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=40),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 60)),
    st.integers(0, 100),
    st.booleans(),
)
def test_f3_whatever_is_asked_the_bytes_stay_below_the_cap_and_are_counted(
    asked: list[tuple[str, bool]], sizes: dict[str, int], capacity: int, on_gpu: bool
) -> None:
    embeddings = EmbeddingCache("sam", capacity, m := Metrics())
    encoder = Encoder(torch.device("cuda" if on_gpu else "cpu"), sizes)
    for name, held_before in asked:
        held = embeddings.handle(name)
        if held_before:
            ask(embeddings, encoder, "a")
        embedding = held.get(retrying(encoder), name)  # type: ignore[arg-type]
        assert embedding.name == name  # type: ignore[attr-defined]
        assert embedding.device == encoder.device
        counted = figures(m)
        assert counted["bytes host"] <= capacity
        assert counted["bytes device"] <= capacity / 8
        cached = sum(size for each in "abcdef" if kept(embeddings, each) for size in [sizes.get(each, 10)])
        assert cached == counted["bytes host"] + counted["bytes device"]
    counted = figures(m)
    assert counted["misses"] == len(encoder.encoded)
    assert counted["hits host"] + counted["hits device"] + counted["misses"] >= len(asked)


def test_what_was_at_hand_stays_so_though_it_is_dropped() -> None:
    embeddings, encoder = EmbeddingCache("sam", 10, Metrics()), cpu()
    ask(embeddings, encoder, "a")
    held = embeddings.handle("a")
    ask(embeddings, encoder, "b")
    assert not kept(embeddings, "a")
    assert held.ready
    assert held.get(retrying(encoder)).name == "a"  # type: ignore[attr-defined]
    assert encoder.encoded == ["a", "b"]


def test_another_segmenter_sees_another_image() -> None:
    assert embedding_key("sam-1", "cat") != embedding_key("sam-2", "cat")


def test_threads_that_ask_for_everything_at_once_get_what_they_ask_for() -> None:
    embeddings, encoder, here = EmbeddingCache("sam", 320, m := Metrics()), gpu(), threading.Barrier(8)

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        here.wait(10)
        for name in rng.integers(0, 50, 300).astype(str).tolist():
            assert ask(embeddings, encoder, name).name == name  # type: ignore[attr-defined]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    counted = figures(m)
    assert counted["bytes device"] == 40
    assert counted["bytes host"] == 320
    assert counted["misses"] == len(encoder.encoded)


# Clicks


@contextmanager
def eight_clicks(ours: VLSAMBackend, source: str) -> Iterator[list[Future[list[Any]]]]:
    """Eight clicks that wait for the models at the same time."""
    begun, go = threading.Event(), threading.Event()

    def busy(_: object) -> None:
        begun.set()
        go.wait(20)

    with ThreadPoolExecutor(9) as pool:
        pool.submit(ours.resources.queue.run, busy, priority=CLICK, deadline=NEVER)
        try:
            assert begun.wait(20)
            answers = [pool.submit(regions, ours, source) for _ in range(8)]
            wait_for(lambda: ours.resources.queue.waiting() == 8)
        finally:
            go.set()
        yield answers


def test_f2_eight_clicks_on_a_new_image_encode_it_once(make_resources: Make, stand_in: StandIn) -> None:
    ours = VLSAMBackend(CONFIG, resources=make_resources(), project="1.1")
    with eight_clicks(ours, data_url(shade=5)) as answers:
        assert [len(answer.result()) for answer in answers] == [1] * 8
    assert stand_in.encoded == [5]
    assert figures(ours.resources.metrics)["misses"] == 1


def test_f2_eight_clicks_share_an_encode_that_fails_and_the_ninth_tries_again(
    make_resources: Make, stand_in: StandIn
) -> None:
    stand_in.fail_to_encode = 1
    ours = VLSAMBackend(CONFIG, resources=make_resources(), project="1.1")
    with eight_clicks(ours, data_url(shade=5)) as answers:
        assert [answer.result() for answer in answers] == [[]] * 8
    assert stand_in.encoded == [5]
    assert len(regions(ours, data_url(shade=5))) == 1
    assert stand_in.encoded == [5, 5]


def test_a_click_that_nobody_waits_for_any_more_leaves_the_encode_to_the_others() -> None:
    embeddings, encoder = EmbeddingCache("sam", 100, Metrics()), cpu()
    late, other = embeddings.handle("a"), embeddings.handle("a")
    del late  # its job is never run
    assert other.get(retrying(encoder), "a").name == "a"  # type: ignore[arg-type, attr-defined]


def test_a_click_after_a_batch_finds_the_image_encoded(make_resources: Make, stand_in: StandIn) -> None:
    ours = VLSAMBackend(CONFIG, resources=make_resources(), project="1.1")
    assert ours.predict([task(image=data_url(shade=5))])[0]["result"]
    assert len(regions(ours, data_url(shade=5))) == 1
    assert stand_in.encoded == [5]


def test_only_the_whole_image_is_kept_of_an_annotation(make_resources: Make, stand_in: StandIn) -> None:
    class Cornered(StandIn):
        def annotate(self, image: Image, **more: Any) -> Any:
            self.encode(image[:30, :40])
            return super().annotate(image, **more)

    resources = make_resources(lambda: Cornered())
    VLSAMBackend(CONFIG, resources=resources, project="1.1").predict([task(image=data_url())])
    assert figures(resources.metrics)["bytes host"] == 60 * 80 * 3


@pytest.mark.slow
def test_twenty_clicks_on_two_images_encode_two(make_resources: Make, builtin: VLSAM) -> None:
    ours = VLSAMBackend(CONFIG, resources=make_resources(lambda: builtin), project="1.1")
    for _ in range(10):
        for shade in (3, 200):
            assert len(regions(ours, data_url(shade=shade), shade)) == 1
    counted = figures(ours.resources.metrics)
    assert (counted["misses"], counted["hits host"]) == (2, 18)


@pytest.mark.slow
def test_the_answers_of_a_warm_and_a_cold_image_are_the_same(make_resources: Make, builtin: VLSAM) -> None:
    engines = [make_resources(lambda: builtin, cache_mb=megabytes) for megabytes in (0, 100)]
    cold, warm = (VLSAMBackend(CONFIG, resources=resources, project="1.1") for resources in engines)
    answers = [[{**regions(ours, data_url())[0], "id": ""} for _ in range(2)] for ours in (cold, warm)]
    assert answers[0] == answers[1]
    assert [figures(resources.metrics)["misses"] for resources in engines] == [2, 1]
