"""Every client of every command: whom it trusts, and through which proxy it goes."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image as Pillow

from backend.commands.cli import main
from backend.datasets.items import SourceError
from backend.demo import processes
from backend.images.fetch import Fetcher
from backend.images.studio_urls import Server
from backend.labelstudio_api import client as labelstudio_api
from backend.labelstudio_api.client import StudioClient, StudioError
from backend.prelabel import sources
from backend.settings import Settings
from model import connections
from model.types import VLSAMError
from model.vlm.remote_vlm import RemoteVLM
from model.weights import hub
from tests.support import certificates, loopback
from tests.support.certificates import Authority, Proxy
from tests.support.label_studio_user import Studio
from tests.support.labeling_configs import CONFIG

KEY = "a" * 40
MODEL = {"config.json": b"{}", "model.safetensors": b"weights"}


class World(loopback.Site):
    """Label Studio, a backend, a listing endpoint and the hub, as far as somebody asks."""

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = _Handler
        picture = BytesIO()
        Pillow.new("RGB", (80, 60)).save(picture, "PNG")
        about = {"id": 3, "title": "Pets", "label_config": CONFIG, "task_number": 0}
        self.repositories["owner/name"] = MODEL
        self.files = {
            "/data/upload/3/x.png": picture.getvalue(),
            "/list.csv": b"image\nx.png\n",
            "/user/login/": b"",
            **{
                path: json.dumps(value).encode()
                for path, value in {
                    "/api/projects/3/": about,
                    "/api/projects/3": about,
                    "/api/projects/3/model-versions/": {"static": [], "live": []},
                    "/api/tasks/": {"tasks": [], "total": 0},
                    "/api/tasks": {"tasks": [], "total": 0},
                    "/api/version/": {"release": "1.23.2"},
                    "/api/current-user/whoami": {"email": "ann@example.com"},
                    "/api/ml/": [
                        {"id": 7, "url": "", "state": "CO", "is_interactive": True, "model_version": "v1"}
                    ],
                    "/health": {"model_version": "v1", "model": "ready"},
                    "/terms": {"project": "3", "terms": []},
                    "/v1/chat/completions": {"choices": [{"message": {"content": "dog"}}]},
                }.items()
            },
        }


class _Handler(loopback.Handler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, "", ""))
        if self.path == "/user/login/":
            self._send(302, b"", {"Location": "/"})
        else:
            self._answer(body=True)


Ask = Callable[[str, Path], object]


def _command(*arguments: str) -> None:
    """Raises AssertionError for a command that fails; pytest shows what it said."""
    assert main(arguments) == 0


def image(url: str, folder: Path) -> None:
    settings = Settings.from_env()
    Fetcher(settings.images, settings.label_studio).load("/data/upload/3/x.png", Server(url, KEY))


def listing(url: str, folder: Path) -> None:
    assert RemoteVLM("big", f"{url}/v1").answer(np.zeros((8, 8, 3), np.uint8), "What is there?") == "dog"


def prelabel(url: str, folder: Path) -> None:
    settings = Settings.from_env()
    assert StudioClient.connect(settings.images, settings.label_studio).label_config(3) == CONFIG


def weights(url: str, folder: Path) -> None:
    assert (hub.fetch("owner/name", folder) / "model.safetensors").read_bytes() == b"weights"


def manifest(url: str, folder: Path) -> None:
    fsspec.filesystem(url.partition(":")[0]).clear_instance_cache()  # a command is a process
    source = sources.choose(f"{url}/list.csv", Settings.from_env(), image_key="image", prefix=None)
    assert [item.address for item in source.items()] == [f"{url}/x.png"]


def demo(url: str, folder: Path) -> None:
    Studio(url, "me", "sesame").close()


CLIENTS: dict[str, Ask] = {
    "image": image,
    "listing": listing,
    "prelabel": prelabel,
    "manifest": manifest,
    "weights": weights,
    "demo": demo,
    "warm": lambda url, folder: _command("warm", "--project", "3"),
    "doctor": lambda url, folder: _command("doctor", "--project", "3", "--backend-url", url, "--json"),
    "terms": lambda url, folder: _command("terms", "--url", url),
}
REFUSALS = (AssertionError, VLSAMError, StudioError, SourceError)
EACH = pytest.mark.parametrize("ask", CLIENTS.values(), ids=CLIENTS)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle"):
        for each in (name, name.upper()):
            monkeypatch.setenv(each, "")  # so that it is set back, whatever a command does to it
            monkeypatch.delenv(each)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
    monkeypatch.setenv("VLSAM_CACHE_DIR", str(tmp_path / "cache"))
    connections.advise_other_libraries()  # as every command does
    monkeypatch.setattr(labelstudio_api, "BATCH", labelstudio_api.ONE_TRY)


@pytest.fixture
def world() -> Iterator[World]:
    with loopback.running(World()) as running:
        assert isinstance(running, World)
        yield running


@pytest.fixture
def secure(authority: Authority) -> Iterator[World]:
    unstarted = World()
    authority.serve(unstarted)
    with loopback.running(unstarted) as running:
        assert isinstance(running, World)
        yield running


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with certificates.proxy() as running:
        yield running


def at(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    """All is asked there."""
    monkeypatch.setenv("LABEL_STUDIO_URL", url)
    loopback.stand_in_for_hub(monkeypatch, url)
    return url


@EACH
def test_each_trusts_the_authorities_of_the_bundle(
    ask: Ask, secure: World, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    ask(at(monkeypatch, f"https://localhost:{secure.server_port}"), tmp_path)
    assert secure.asked


@EACH
def test_each_names_the_variable_for_a_certificate_that_it_does_not_trust(
    ask: Ask,
    secure: World,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(REFUSALS) as caught:
        ask(at(monkeypatch, f"https://localhost:{secure.server_port}"), tmp_path)
    said = f"{caught.value} {''.join(capsys.readouterr())}"
    assert "unable to get local issuer certificate" in said
    assert "REQUESTS_CA_BUNDLE" in said
    assert secure.asked == []


@EACH
def test_each_goes_through_the_proxy(
    ask: Ask, world: World, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    proxy.to = world.server_port
    ask(at(monkeypatch, "http://studio.example"), tmp_path)
    assert proxy.seen
    assert all(line.partition(" ")[2].startswith("http://studio.example/") for line in proxy.seen)


@EACH
def test_each_has_the_proxy_tunnel_https(
    ask: Ask,
    secure: World,
    proxy: Proxy,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    monkeypatch.setenv("https_proxy", proxy.url)
    proxy.to = secure.server_port
    ask(at(monkeypatch, "https://studio.example"), tmp_path)
    assert set(proxy.seen) == {"CONNECT studio.example:443"}


@EACH
def test_no_proxy_and_loopback_go_before_the_proxy(
    ask: Ask, world: World, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    if ask is not manifest:  # fsspec's client knows loopback by this variable alone
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name)
    for host in ("localhost", "127.0.0.1"):
        ask(at(monkeypatch, f"http://{host}:{world.server_port}"), tmp_path / host)
    monkeypatch.setenv("NO_PROXY", "example")
    monkeypatch.setenv("no_proxy", "example")
    with pytest.raises((*REFUSALS, OSError)):  # nobody knows its name
        ask(at(monkeypatch, "http://studio.example"), tmp_path / "named")
    assert proxy.seen == []


@pytest.mark.parametrize("below", ["", "/ls"])
def test_personal_access_tokens_are_exchanged_below_label_studios_path(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, below: str
) -> None:
    claims = b64encode(json.dumps({"token_type": "refresh", "exp": 9999999999}).encode()).decode().rstrip("=")
    head = b64encode(b'{"alg": "HS256"}').decode().rstrip("=")
    world.files = {below + path: content for path, content in world.files.items()}
    world.files[f"{below}/api/token/refresh/"] = json.dumps({"access": f"{head}.{claims}.c2ln"}).encode()
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", f"{head}.{claims}.c2ln")
    for ask in (prelabel, CLIENTS["warm"]):
        ask(at(monkeypatch, world.url + below), tmp_path)
        assert world.asked[0][0] == f"{below}/api/token/refresh/"
        assert all(path.startswith(f"{below}/api/") for path, _, _ in world.asked)
        world.asked.clear()


def test_the_demo_sees_its_servers_behind_a_proxy(
    world: World, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    assert processes.answers(f"{world.url}/health")
    assert proxy.seen == []


def test_a_bundle_is_looked_at_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.pem").write_text("no certificate")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "empty.pem"))
    assert main(["terms"]) == 2
    assert "REQUESTS_CA_BUNDLE is" in capsys.readouterr().err
