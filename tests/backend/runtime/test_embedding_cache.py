import base64
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from backend.answers.ml_backend import VLSAMBackend
from backend.images.errors import ImageError
from backend.images.studio_urls import Server
from backend.labelstudio.results import image_hash
from backend.runtime import embedding_cache
from backend.runtime.embedding_cache import Embeddings, Flights, Once, Sources, source_key
from backend.runtime.engine import CLICK, Engine
from backend.telemetry.metrics import Metrics
from model.pipeline import VLSAM
from model.segmentation.segmenter import Embedding
from model.types import Image
from tests.backend.conftest import CONFIG, StandIn, Web, data_url, wait_for

Make = Callable[..., Engine]


def figures(metrics: Metrics) -> dict[str, float]:
    """As a Prometheus server reads them: hits{tier="host"} is `hits host`."""
    return {
        " ".join(
            [sample.name.removeprefix("vlsam_embedding_").removesuffix("_total"), *sample.labels.values()]
        ): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name.startswith("vlsam_embedding_") and not sample.name.endswith("_created")
    }


# Work that is shared


def together(count: int, work: Callable[[int], Any]) -> list[Future[Any]]:
    """What `work` gives for each number, in as many threads."""
    with ThreadPoolExecutor(count) as pool:
        return [pool.submit(work, number) for number in range(count)]


def test_eight_who_ask_at_once_share_one_result() -> None:
    flights, begun, here = Flights[object](), list[int](), threading.Barrier(8)

    def work() -> object:
        begun.append(1)
        return object()

    def ask(_: int) -> object:
        once = flights.of("key")
        here.wait(10)
        return once(work)

    assert len({future.result() for future in together(8, ask)}) == 1
    assert len(begun) == 1


def test_eight_who_ask_at_once_share_one_error_which_the_ninth_does_not() -> None:
    flights, begun, here = Flights[int](), list[int](), threading.Barrier(8)

    def work() -> int:
        begun.append(1)
        raise ZeroDivisionError

    def ask(_: int) -> int:
        once = flights.of("key")
        here.wait(10)
        return once(work)

    assert [type(future.exception()) for future in together(8, ask)] == [ZeroDivisionError] * 8
    assert len(begun) == 1
    assert flights.of("key")(lambda: 9) == 9


def test_who_fails_for_want_of_time_does_not_fail_the_others() -> None:
    once, begun = Once[int](), threading.Event()

    def too_long() -> int:
        begun.set()
        time.sleep(0.1)
        raise ImageError("did not answer in time")

    with ThreadPoolExecutor() as pool:
        hasty = pool.submit(once, too_long, time.monotonic() + 0.05)
        begun.wait(10)
        patient = pool.submit(once, lambda: 7, time.monotonic() + 10)
        assert isinstance(hasty.exception(), ImageError)
        assert patient.result() == 7


def test_nobody_waits_beyond_a_deadline_of_their_own() -> None:
    once, begun, go = Once[int](), threading.Event(), threading.Event()

    def long() -> int:
        begun.set()
        go.wait(10)
        return 7

    with ThreadPoolExecutor() as pool:
        first = pool.submit(once, long)
        begun.wait(10)
        with pytest.raises(TimeoutError):
            once(lambda: 8, time.monotonic() + 0.02)
        go.set()
        assert first.result() == 7


def test_work_that_nobody_holds_is_forgotten() -> None:
    flights = Flights[int]()
    flights.of("key")(lambda: 1)
    assert not flights._now
    held = flights.of("key")
    assert flights.of("key") is held


# Embeddings


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

    def encode(self, image: Any) -> Any:
        self.encoded.append(image)
        return Block(image, self.sizes.get(image, 10), self.device)


def kept(embeddings: Embeddings, name: str) -> bool:
    return embeddings.hold(name).ready


def ask(embeddings: Embeddings, encoder: Encoder, name: Any) -> Embedding:
    return embeddings.hold(name).get(encoder, name)


def cpu() -> Encoder:
    return Encoder(torch.device("cpu"))


def gpu() -> Encoder:
    return Encoder(torch.device("cuda"))


def test_an_image_is_encoded_once() -> None:
    embeddings, encoder = Embeddings("sam", 100, m := Metrics()), cpu()
    first, second = (ask(embeddings, encoder, "cat") for _ in range(2))
    assert first is second
    assert encoder.encoded == ["cat"]
    assert figures(m) == {
        "hits host": 1, "hits device": 0, "misses": 1, "evictions host": 0, "evictions device": 0,
        "bytes host": 10, "bytes device": 0,
    }  # fmt: skip


def test_f3_the_longest_unused_goes_first_when_bytes_run_out() -> None:
    embeddings, encoder = Embeddings("sam", 30, m := Metrics()), cpu()
    for name in ("a", "b", "c", "a", "d"):
        ask(embeddings, encoder, name)
    assert [kept(embeddings, name) for name in "abcd"] == [True, False, True, True]
    assert (figures(m)["evictions host"], figures(m)["bytes host"]) == (1, 30)


def test_f3_what_is_larger_than_the_cache_drives_nothing_out() -> None:
    embeddings, encoder = Embeddings("sam", 30, Metrics()), Encoder(torch.device("cpu"), {"huge": 31})
    for name in ("a", "b", "huge"):
        ask(embeddings, encoder, name)
    assert [kept(embeddings, name) for name in ("a", "b", "huge")] == [True, True, False]


def test_a_cache_of_no_bytes_keeps_nothing_and_works() -> None:
    embeddings, encoder = Embeddings("sam", 0, Metrics()), cpu()
    ask(embeddings, encoder, "a")
    ask(embeddings, encoder, "a")
    assert encoder.encoded == ["a", "a"]


def test_what_the_device_has_no_room_for_moves_to_the_host_and_back() -> None:
    embeddings, encoder = Embeddings("sam", 160, m := Metrics()), gpu()  # 20 bytes on the device
    for name in "abc":
        assert ask(embeddings, encoder, name).device.type == "cuda"
    assert (figures(m)["bytes device"], figures(m)["bytes host"]) == (20, 10)
    assert ask(embeddings, encoder, "a").device.type == "cuda"  # and b goes to the host in its place
    assert (figures(m)["hits host"], figures(m)["evictions device"]) == (1, 2)
    assert (figures(m)["bytes device"], figures(m)["bytes host"]) == (20, 10)
    assert encoder.encoded == ["a", "b", "c"]


def test_what_is_too_large_for_the_device_tier_is_kept_by_the_host() -> None:
    embeddings, encoder = Embeddings("sam", 160, m := Metrics()), Encoder(torch.device("cuda"), {"a": 21})
    assert ask(embeddings, encoder, "a").device.type == "cuda"
    assert ask(embeddings, encoder, "a").device.type == "cuda"
    assert (figures(m)["bytes device"], figures(m)["bytes host"]) == (0, 21)
    assert encoder.encoded == ["a"]


def test_f4_a_device_without_memory_keeps_no_embedding() -> None:
    embeddings, encoder = Embeddings("sam", 160, m := Metrics()), gpu()
    for name in "ab":
        ask(embeddings, encoder, name)
    embeddings.leave_device()
    assert (figures(m)["bytes device"], figures(m)["bytes host"]) == (0, 20)
    assert ask(embeddings, encoder, "a").device.type == "cuda"
    assert encoder.encoded == ["a", "b"]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=40),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 60)),
    st.integers(0, 100),
    st.booleans(),
)
def test_f3_whatever_is_asked_the_bytes_stay_below_the_cap_and_are_counted(
    asked: list[tuple[str, bool]], sizes: dict[str, int], capacity: int, on_gpu: bool
) -> None:
    embeddings = Embeddings("sam", capacity, m := Metrics())
    encoder = Encoder(torch.device("cuda" if on_gpu else "cpu"), sizes)
    for name, held_before in asked:
        held = embeddings.hold(name)
        if held_before:
            ask(embeddings, encoder, "a")
        embedding = held.get(encoder, name)  # type: ignore[arg-type]
        assert embedding.name == name  # type: ignore[attr-defined]
        assert embedding.device == encoder.device
        for tier in (embeddings._host, embeddings._device):
            size = sum(each.nbytes for each in tier.entries.values())
            assert size == figures(m)[f"bytes {tier.name}"] <= tier.capacity
    counted = figures(m)
    assert counted["misses"] == len(encoder.encoded)
    assert counted["hits host"] + counted["hits device"] + counted["misses"] >= len(asked)


def test_what_was_at_hand_stays_so_though_it_is_dropped() -> None:
    embeddings, encoder = Embeddings("sam", 10, Metrics()), cpu()
    ask(embeddings, encoder, "a")
    held = embeddings.hold("a")
    ask(embeddings, encoder, "b")
    assert not kept(embeddings, "a")
    assert held.ready
    assert held.get(encoder).name == "a"  # type: ignore[attr-defined]
    assert encoder.encoded == ["a", "b"]


def test_another_segmenter_sees_another_image() -> None:
    metrics = Metrics()
    one, other = Embeddings("sam-1", 100, metrics), Embeddings("sam-2", 100, metrics)
    assert one.hold("cat")._key != other.hold("cat")._key


def test_threads_that_ask_for_everything_at_once_get_what_they_ask_for() -> None:
    embeddings, encoder, here = Embeddings("sam", 320, m := Metrics()), gpu(), threading.Barrier(8)

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        here.wait(10)
        for name in rng.integers(0, 50, 300).astype(str).tolist():
            assert ask(embeddings, encoder, name).name == name  # type: ignore[attr-defined]

    for future in together(8, work):
        future.result()
    counted = figures(m)
    assert counted["bytes device"] == 40
    assert counted["bytes host"] == 320
    assert counted["misses"] == len(encoder.encoded)


# Clicks


def click(x: float, y: float, label: str = "Cat") -> dict[str, Any]:
    value = {"x": x / 0.8, "y": y / 0.6, "width": 0.2, "keypointlabels": [label]}
    return {"result": [{"value": value, "type": "keypointlabels", "id": "p", "is_positive": True}]}


def task(source: str, number: int = 1) -> dict[str, Any]:
    return {"id": number, "data": {"image": source}}


def regions(ours: VLSAMBackend, source: str, number: int = 1) -> list[Any]:
    (answer,) = ours.predict([task(source, number)], context=click(20, 30))
    return list(answer["result"])


@contextmanager
def eight_clicks(ours: VLSAMBackend, source: str) -> Iterator[list[Future[list[Any]]]]:
    """Eight clicks that wait for the models at the same time."""
    begun, go = threading.Event(), threading.Event()

    def busy(_: object) -> None:
        begun.set()
        go.wait(20)

    with ThreadPoolExecutor(9) as pool:
        pool.submit(ours.engine.run, busy, priority=CLICK, deadline=time.monotonic() + 30)
        try:
            assert begun.wait(20)
            answers = [pool.submit(regions, ours, source) for _ in range(8)]
            wait_for(lambda: len(ours.engine._jobs) == 8)
        finally:
            go.set()
        yield answers


def test_f2_eight_clicks_on_a_new_image_encode_it_once(make_engine: Make, stand_in: StandIn) -> None:
    ours = VLSAMBackend(CONFIG, engine=make_engine(), project="1.1")
    with eight_clicks(ours, data_url(shade=5)) as answers:
        assert [len(answer.result()) for answer in answers] == [1] * 8
    assert stand_in.encoded == [5]
    assert figures(ours.engine.metrics)["misses"] == 1


def test_f2_eight_clicks_share_an_encode_that_fails_and_the_ninth_tries_again(
    make_engine: Make, stand_in: StandIn
) -> None:
    stand_in.fail_to_encode = 1
    ours = VLSAMBackend(CONFIG, engine=make_engine(), project="1.1")
    with eight_clicks(ours, data_url(shade=5)) as answers:
        assert [answer.result() for answer in answers] == [[]] * 8
    assert stand_in.encoded == [5]
    assert len(regions(ours, data_url(shade=5))) == 1
    assert stand_in.encoded == [5, 5]


def test_a_click_that_nobody_waits_for_any_more_leaves_the_encode_to_the_others() -> None:
    embeddings, encoder = Embeddings("sam", 100, Metrics()), cpu()
    late, other = embeddings.hold("a"), embeddings.hold("a")
    del late  # its job is never run
    assert other.get(encoder, "a").name == "a"  # type: ignore[arg-type, attr-defined]


def test_a_click_after_a_batch_finds_the_image_encoded(make_engine: Make, stand_in: StandIn) -> None:
    ours = VLSAMBackend(CONFIG, engine=make_engine(), project="1.1")
    assert ours.predict([task(data_url(shade=5))])[0]["result"]
    assert len(regions(ours, data_url(shade=5))) == 1
    assert stand_in.encoded == [5]


def test_only_the_whole_image_is_kept_of_an_annotation(make_engine: Make, stand_in: StandIn) -> None:
    class Cornered(StandIn):
        def annotate(self, image: Image, *, encode: Any = None, **more: Any) -> Any:
            encode(image[:30, :40])
            return super().annotate(image, encode=encode)

    engine = make_engine(lambda: Cornered())
    VLSAMBackend(CONFIG, engine=engine, project="1.1").predict([task(data_url())])
    assert figures(engine.metrics)["bytes host"] == 60 * 80 * 3


def test_twenty_clicks_on_two_images_encode_two(make_engine: Make, builtin: VLSAM) -> None:
    ours = VLSAMBackend(CONFIG, engine=make_engine(lambda: builtin), project="1.1")
    for _ in range(10):
        for shade in (3, 200):
            assert len(regions(ours, data_url(shade=shade), shade)) == 1
    counted = figures(ours.engine.metrics)
    assert (counted["misses"], counted["hits host"]) == (2, 18)


def test_the_answers_of_a_warm_and_a_cold_image_are_the_same(make_engine: Make, builtin: VLSAM) -> None:
    engines = [make_engine(lambda: builtin, cache_mb=megabytes) for megabytes in (0, 100)]
    cold, warm = (VLSAMBackend(CONFIG, engine=engine, project="1.1") for engine in engines)
    answers = [[{**regions(ours, data_url())[0], "id": ""} for _ in range(2)] for ours in (cold, warm)]
    assert answers[0] == answers[1]
    assert [figures(engine.metrics)["misses"] for engine in engines] == [2, 1]


# Addresses

UPLOAD = "/data/upload/1/cat.png"


@pytest.fixture
def web() -> Iterator[Web]:
    with closing(Web()) as web:
        web.serve(UPLOAD, base64.b64decode(data_url(shade=5).partition(",")[2]))
        yield web


def project(engine: Engine, web: Web, name: str = "1.1", token: str = "ours") -> VLSAMBackend:
    return VLSAMBackend(
        CONFIG, engine=engine, project=name, hostname=web.url, access_token=token, caller="127.0.0.1"
    )


def test_a_warm_click_fetches_and_decodes_nothing(make_engine: Make, web: Web) -> None:
    ours = project(make_engine(), web)
    first, second = (regions(ours, UPLOAD)[0] for _ in range(2))
    assert {**first, "id": ""} == {**second, "id": ""}
    assert len(web.seen) == 1


def test_the_first_click_after_a_batch_fetches_nothing(make_engine: Make, web: Web) -> None:
    ours = project(make_engine(), web)
    ours.predict([task(UPLOAD)])
    assert len(regions(ours, UPLOAD)) == 1
    assert len(web.seen) == 1


def test_f10_eight_clicks_on_a_new_image_fetch_it_once_and_keep_no_file(
    make_engine: Make, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is half written, since nothing is written: the file is in memory alone."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    go = threading.Event()
    serve = web.routes[UPLOAD]

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        go.wait(10)
        serve(handler)

    web.routes[UPLOAD] = slowly
    ours = project(make_engine(), web)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(regions, ours, UPLOAD) for _ in range(8)]
        wait_for(lambda: ours.engine._inside == 8)
        time.sleep(0.1)
        go.set()
        assert [len(answer.result()) for answer in answers] == [1] * 8
    assert len(web.seen) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "other", [{"name": "2.1"}, {"token": "theirs"}], ids=["another project", "another token"]
)
def test_f33_what_one_project_may_see_is_not_shown_to_another(
    make_engine: Make, web: Web, other: dict[str, str]
) -> None:
    engine = make_engine()
    assert len(regions(project(engine, web), UPLOAD)) == 1
    web.serve(UPLOAD, b"no", status=403)
    assert regions(project(engine, web, **other), UPLOAD) == []
    assert len(web.seen) == 2


def test_f33_a_project_that_is_not_known_has_every_click_fetched(make_engine: Make, web: Web) -> None:
    ours = project(make_engine(), web, "")
    assert [len(regions(ours, UPLOAD)) for _ in range(2)] == [1, 1]
    assert len(web.seen) == 2


def test_f34_an_address_is_trusted_for_a_short_time_only(
    make_engine: Make, web: Web, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_cache, "SOURCE_SECONDS", 0.0)
    ours = project(make_engine(), web)
    assert len(regions(ours, UPLOAD)) == 1
    web.serve(UPLOAD, base64.b64decode(data_url(shade=9).partition(",")[2]))
    assert len(regions(ours, UPLOAD)) == 1
    assert stand_in.encoded == [5, 9]
    web.serve(UPLOAD, b"no", status=403)
    assert regions(ours, UPLOAD) == []


def test_f34_a_batch_looks_at_the_file_itself(make_engine: Make, web: Web, stand_in: StandIn) -> None:
    """What is kept goes by the content, so another picture at the same address is another picture."""
    ours = project(make_engine(), web)
    ours.predict([task(UPLOAD)])
    web.serve(UPLOAD, base64.b64decode(data_url(shade=9).partition(",")[2]))
    ours.predict([task(UPLOAD)])
    assert len(regions(ours, UPLOAD)) == 1  # a click after it knows, too, and needs no file
    assert (stand_in.encoded, len(web.seen)) == ([5, 9], 2)


def test_an_address_whose_embedding_was_dropped_is_fetched_again(make_engine: Make, web: Web) -> None:
    ours = project(make_engine(cache_mb=0), web)
    assert [len(regions(ours, UPLOAD)) for _ in range(2)] == [1, 1]
    assert len(web.seen) == 2


def test_a_failed_fetch_is_not_remembered(make_engine: Make, web: Web) -> None:
    good = web.routes[UPLOAD]
    web.serve(UPLOAD, b"later", status=500)
    ours = project(make_engine(), web)
    assert regions(ours, UPLOAD) == []
    web.routes[UPLOAD] = good
    assert len(regions(ours, UPLOAD)) == 1


def test_f33_a_key_tells_apart_whatever_decides_what_may_be_seen() -> None:
    studio = Server("http://studio", "token")
    ways: list[tuple[Server | None, str, object, str]] = [
        (studio, "1.1", 1, "/a"),
        (Server("http://other", "token"), "1.1", 1, "/a"),
        (Server("http://studio", "another"), "1.1", 1, "/a"),
        (None, "1.1", 1, "/a"),
        (studio, "2.1", 1, "/a"),
        (studio, "1.1", 2, "/a"),
        (studio, "1.1", "1", "/a"),
        (studio, "1.1", 1, "/b"),
    ]
    assert len({source_key(*way) for way in ways}) == len(ways)
    assert source_key(*ways[0]) == source_key(*ways[0])
    assert source_key(studio, "", 1, "/a") is None


def test_old_addresses_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "MAX_SOURCES", 2)
    sources, picture = Sources(), np.zeros((6, 8, 3), np.uint8)
    for key in (b"1", b"2", b"3"):
        sources.load(key, lambda: picture, time.monotonic() + 1)
    assert [sources.find(key) is not None for key in (b"1", b"2", b"3")] == [False, True, True]
    known = sources.find(b"3")
    assert known is not None
    assert (known.content, known.size) == (image_hash(picture), (6, 8))
