import base64
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from backend.answers.ml_backend import VLSAMBackend
from backend.answers.resources import Resources
from backend.answers.task_image import Access
from backend.images.image_cache import SECONDS, ImageCache, cache_key, image_hash
from backend.images.studio_urls import Server
from model.deadline import NEVER
from tests.support.clock import Clock
from tests.support.fake_web import Web
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG
from tests.support.predictions import regions, task
from tests.support.stand_in import StandIn
from tests.support.waiting import wait_for

Make = Callable[..., Resources]

UPLOAD = "/data/upload/1/cat.png"


@pytest.fixture
def web() -> Iterator[Web]:
    with closing(Web()) as web:
        web.serve(UPLOAD, base64.b64decode(data_url(shade=5).partition(",")[2]))
        yield web


def project(resources: Resources, web: Web, name: str = "1.1", token: str = "ours") -> VLSAMBackend:
    ours = VLSAMBackend(CONFIG, resources=resources)
    ours.access = Access(resources, Server(web.url, token, "127.0.0.1"), name)
    return ours


def test_a_warm_click_fetches_and_decodes_nothing(make_resources: Make, web: Web) -> None:
    ours = project(make_resources(), web)
    first, second = (regions(ours, UPLOAD)[0] for _ in range(2))
    assert {**first, "id": ""} == {**second, "id": ""}
    assert len(web.seen) == 1


def test_the_first_click_after_a_batch_fetches_nothing(make_resources: Make, web: Web) -> None:
    ours = project(make_resources(), web)
    ours.predict([task(image=UPLOAD)])
    assert len(regions(ours, UPLOAD)) == 1
    assert len(web.seen) == 1


def test_f10_eight_clicks_on_a_new_image_fetch_it_once_and_keep_no_file(
    make_resources: Make, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    ours = project(make_resources(), web)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(regions, ours, UPLOAD) for _ in range(8)]
        wait_for(lambda: ours.resources.queue.admitted_requests == 8)
        go.set()
        assert [len(answer.result()) for answer in answers] == [1] * 8
    assert len(web.seen) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "other", [{"name": "2.1"}, {"token": "theirs"}], ids=["another project", "another token"]
)
def test_f33_what_one_project_may_see_is_not_shown_to_another(
    make_resources: Make, web: Web, other: dict[str, str]
) -> None:
    resources = make_resources()
    assert len(regions(project(resources, web), UPLOAD)) == 1
    web.serve(UPLOAD, b"no", status=403)
    assert regions(project(resources, web, **other), UPLOAD) == []
    assert len(web.seen) == 2


def test_f33_a_project_that_is_not_known_has_every_click_fetched(make_resources: Make, web: Web) -> None:
    ours = project(make_resources(), web, "")
    assert [len(regions(ours, UPLOAD)) for _ in range(2)] == [1, 1]
    assert len(web.seen) == 2


def test_f34_an_address_is_trusted_for_a_short_time_only(
    make_resources: Make, web: Web, stand_in: StandIn
) -> None:
    clock = Clock()
    resources = make_resources(clock=clock)
    ours = project(resources, web)
    assert len(regions(ours, UPLOAD)) == 1
    web.serve(UPLOAD, base64.b64decode(data_url(shade=9).partition(",")[2]))
    clock.now += SECONDS - 1
    assert len(regions(ours, UPLOAD)) == 1
    assert stand_in.encoded == [5]
    clock.now += 1
    assert len(regions(ours, UPLOAD)) == 1
    assert stand_in.encoded == [5, 9]
    clock.now += SECONDS
    web.serve(UPLOAD, b"no", status=403)
    assert regions(ours, UPLOAD) == []


def test_f34_a_batch_looks_at_the_file_itself(make_resources: Make, web: Web, stand_in: StandIn) -> None:
    """What is kept goes by the content, so another picture at the same address is another picture."""
    ours = project(make_resources(), web)
    ours.predict([task(image=UPLOAD)])
    web.serve(UPLOAD, base64.b64decode(data_url(shade=9).partition(",")[2]))
    ours.predict([task(image=UPLOAD)])
    assert len(regions(ours, UPLOAD)) == 1  # a click after it knows, too, and needs no file
    assert (stand_in.encoded, len(web.seen)) == ([5, 9], 2)


def test_an_address_whose_embedding_was_dropped_is_fetched_again(make_resources: Make, web: Web) -> None:
    ours = project(make_resources(cache_mb=0), web)
    assert [len(regions(ours, UPLOAD)) for _ in range(2)] == [1, 1]
    assert len(web.seen) == 2


def test_a_failed_fetch_is_not_remembered(make_resources: Make, web: Web) -> None:
    good = web.routes[UPLOAD]
    web.serve(UPLOAD, b"later", status=500)
    ours = project(make_resources(), web)
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
    assert len({cache_key(*way) for way in ways}) == len(ways)
    assert cache_key(*ways[0]) == cache_key(*ways[0])
    assert cache_key(studio, "", 1, "/a") is None


def test_the_address_unused_longest_makes_room() -> None:
    cache, picture = ImageCache(entries=2), np.zeros((6, 8, 3), np.uint8)
    for key in (b"1", b"2", b"3"):
        cache.load(key, lambda: picture, NEVER)
    assert [cache.find(key) is not None for key in (b"1", b"2", b"3")] == [False, True, True]
    cached = cache.find(b"3")
    assert cached is not None
    assert (cached.content, cached.size) == (image_hash(picture), (6, 8))
    assert cache.find(None) is None


def test_a_hash_tells_images_apart_by_pixels_and_size() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    assert image_hash(image) == image_hash(image.copy())
    assert image_hash(image) != image_hash(image + 1)
    assert image_hash(image) != image_hash(image.reshape(6, 4, 3))
