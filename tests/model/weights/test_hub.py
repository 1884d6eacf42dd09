import hashlib
import json
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from backend.commands.cli import main
from backend.settings import Settings, SettingsError
from model.options import Options
from model.profiles import PROFILES, choose
from model.segmentation.segmenter import Segmenter
from model.types import ModelLoadError
from model.versions import segmenter_version_of, version_of
from model.vlm.vlm import VLM
from model.weights import download
from tests.support.loopback import COMMIT, Site, running
from tests.support.waiting import wait_for

CONTENT = bytes(range(256)) * 9000  # 2.3 MB
NAME = "somebody/tiny-vl"
MODEL = {
    "config.json": b'{"model_type": "qwen2_5_vl"}',
    "tokenizer.json": b"[" + b"1," * 900 + b"1]",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": CONTENT,
    "model-00002-of-00002.safetensors": CONTENT[::-1],
    "README.md": b"not needed",
    "pytorch_model.bin": b"the same in pickle",
    "onnx/model.onnx": b"the same again",
    "tiny.Q4.gguf": b"and again",
}
NEEDED = set(list(MODEL)[:6])


@pytest.fixture
def site() -> Iterator[Site]:
    with running() as server:
        yield server


@pytest.fixture
def hub(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The loopback server in place of the hub, whose library has an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", site.url)
    template = site.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "sesame")
    site.repositories[NAME] = dict(MODEL)
    return site


@pytest.fixture
def nowhere() -> str:
    """The address of a server that is gone."""
    with running() as server:
        return server.url


def of(site: Site, path: str) -> list[str]:
    """The ranges that were asked of a path."""
    return [asked for given, asked, _ in site.asked if given == path]


def test_a_file_arrives_under_its_own_name(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    remote = site.remote("weights.pth", CONTENT)
    download.fetch([remote], folder)
    assert (folder / "weights.pth").read_bytes() == CONTENT
    assert [f.name for f in folder.iterdir() if not f.name.startswith(".")] == ["weights.pth"]
    download.fetch([remote], folder)
    assert of(site, "/weights.pth") == [""]  # the second time it was there


def test_a_part_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(CONTENT[:1_000_000])
    download.fetch([site.remote("weights.pth", CONTENT)], tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert of(site, "/weights.pth") == ["bytes=1000000-"]


def test_a_broken_connection_is_taken_up_again(site: Site, tmp_path: Path) -> None:
    site.breaks = [1_500_000, 400_000]
    download.fetch([site.remote("weights.pth", CONTENT)], tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    first, second, third = of(site, "/weights.pth")
    assert first == ""
    assert second < third


def test_a_server_without_ranges_sends_it_all_again(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 1_000)
    download.fetch([site.remote("weights.pth", CONTENT)], tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("other", [CONTENT[::-1], CONTENT * 2, b""])
def test_f25_other_bytes_never_get_the_name(site: Site, tmp_path: Path, other: bytes) -> None:
    remote = site.remote("weights.pth", CONTENT)
    site.files["/weights.pth"] = other
    with pytest.raises(ModelLoadError, match=r"another checksum|nothing came"):
        download.fetch([remote], tmp_path)
    assert not (tmp_path / "weights.pth").exists()
    left = tmp_path / "weights.pth.part"
    assert not left.exists() or left.stat().st_size == 0


def test_a_corrupt_file_is_fetched_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(CONTENT[:-1] + b"?")
    download.fetch([site.remote("weights.pth", CONTENT)], tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_ctrl_c_leaves_a_part_to_go_on_with(site: Site, tmp_path: Path) -> None:
    site.breaks = [1_200_000]
    site.stall.clear()
    remote, part = site.remote("weights.pth", CONTENT), tmp_path / "weights.pth.part"
    # What starts the tests may have switched the signal off for all its children.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = (
        listen
        + "import sys; from model.weights.download import *; fetch([eval(sys.argv[1])], Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, repr(remote), tmp_path], stderr=subprocess.PIPE)
    wait_for(lambda: process.poll() is not None or (part.exists() and part.stat().st_size > 1_000_000), 60)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in error
    have = part.stat().st_size
    assert have > 1_000_000
    download.fetch([remote], tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert of(site, "/weights.pth") == ["", f"bytes={have}-"]


def test_of_two_at_once_one_fetches(site: Site, tmp_path: Path) -> None:
    remote = site.remote("weights.pth", CONTENT)
    threads = [threading.Thread(target=download.fetch, args=([remote], tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert len(of(site, "/weights.pth")) == 1


def test_without_network_a_sentence_says_what_to_copy_where(nowhere: str, tmp_path: Path) -> None:
    remote = download.Remote("weights.pth", f"{nowhere}/weights.pth", 9, "0" * 64)
    with pytest.raises(ModelLoadError) as error:
        download.fetch([remote], tmp_path)
    assert f"or copy {nowhere}/weights.pth to {tmp_path}/weights.pth" in str(error.value)
    assert "ConnectionError" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_server_lacks_is_said(site: Site, tmp_path: Path) -> None:
    remote = site.remote("weights.pth", CONTENT)
    del site.files["/weights.pth"]
    with pytest.raises(ModelLoadError, match="HTTP 404"):
        download.fetch([remote], tmp_path)


def test_f28_a_folder_that_cannot_be_written_is_one_sentence(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelLoadError, match="cannot be used for weights"):
        download.fetch([site.remote("weights.pth", CONTENT)], tmp_path / "file" / "folder")


def test_a_model_of_the_hub_comes_with_what_it_needs_only(hub: Site, tmp_path: Path) -> None:
    folder = download.fetch_hub(NAME, tmp_path)
    assert folder == tmp_path / NAME
    assert {f.name for f in folder.glob("[!.]*") if f.is_file()} == NEEDED
    assert all((folder / name).read_bytes() == MODEL[name] for name in NEEDED)
    assert all(token == "Bearer sesame" for path, _, token in hub.asked if "resolve" in path)

    hub.asked.clear()
    (folder / "config.json").write_bytes(b"[]")
    download.fetch_hub(NAME, tmp_path)
    assert [path.rsplit("/")[-1] for path, _, _ in hub.asked if "resolve" in path] == ["config.json"]

    hub.asked.clear()
    assert download.hub(NAME, tmp_path) == folder
    assert hub.asked == []  # what is complete is loaded without a word to the hub


def test_the_hubs_token_goes_to_no_other_host(hub: Site, tmp_path: Path) -> None:
    with running() as elsewhere:
        elsewhere.files = {f"/{name}": content for name, content in MODEL.items()}
        hub.moved = f"http://localhost:{elsewhere.server_port}"
        download.fetch_hub(NAME, tmp_path)
        assert len(elsewhere.asked) == len(NEEDED)
        assert {token for _, _, token in elsewhere.asked} == {""}


def test_an_interrupted_model_goes_on_and_is_incomplete_until_then(hub: Site, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    folder.mkdir(parents=True)
    for name in NEEDED - {"model-00002-of-00002.safetensors"}:
        (folder / name).write_bytes(MODEL[name])
    last = "model-00002-of-00002.safetensors"
    (folder / f"{last}.part").write_bytes(MODEL[last][:5000])
    assert not download.complete(folder)
    assert download.hub(NAME, tmp_path) == folder
    assert download.complete(folder)
    assert [(p.rsplit("/")[-1], r) for p, r, _ in hub.asked if "resolve" in p] == [(last, "bytes=5000-")]


def test_one_whole_file_is_preferred_to_the_same_in_shards(hub: Site, tmp_path: Path) -> None:
    hub.repositories[NAME]["model.safetensors"] = CONTENT
    folder = download.fetch_hub(NAME, tmp_path)
    assert [f.name for f in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert download.complete(folder)


def test_the_hub_librarys_own_cache_is_used(hub: Site, tmp_path: Path) -> None:
    cached = Path(snapshot_download(NAME))
    hub.asked.clear()
    assert download.hub(NAME, tmp_path / "ours") == cached
    assert download.fetch_hub(NAME, tmp_path / "ours") == cached
    assert hub.asked == []
    weights = (cached / "model-00001-of-00002.safetensors").resolve()
    weights.chmod(0o644)
    weights.write_bytes(CONTENT[::-1])
    assert download.fetch_hub(NAME, tmp_path / "ours") == tmp_path / "ours" / NAME
    (cached / "model-00002-of-00002.safetensors").unlink()
    hub.status = 500
    assert download.hub(NAME, tmp_path / "ours") == tmp_path / "ours" / NAME


def test_without_the_hub_a_sentence_says_what_to_copy_where(
    hub: Site, nowhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    with pytest.raises(ModelLoadError) as error:
        download.hub(NAME, tmp_path)
    assert f"*.json, *.jinja, *.txt, *.model and model*.safetensors files into {tmp_path / NAME}" in str(
        error.value
    )
    (tmp_path / NAME).mkdir(parents=True)
    for name in NEEDED:
        (tmp_path / NAME / name).write_bytes(MODEL[name])
    assert download.hub(NAME, tmp_path) == tmp_path / NAME
    with pytest.raises(ModelLoadError, match="is complete and will be loaded, but its checksums cannot"):
        download.fetch_hub(NAME, tmp_path)


def test_a_model_that_is_not_there_or_not_for_you_is_said(hub: Site, tmp_path: Path) -> None:
    for status in (401, 404):
        hub.status = status
        with pytest.raises(ModelLoadError, match=f"HTTP {status}.*HF_TOKEN"):
            download.hub(NAME, tmp_path)
    hub.status = 0
    hub.repositories[NAME] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(ModelLoadError, match="no safetensors"):
        download.hub(NAME, tmp_path)


def test_f25_checkpoints_are_compared_when_they_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = tmp_path / "sam_vit_b_01ec64.pth"
    published.write_bytes(CONTENT)
    with pytest.raises(ModelLoadError, match=r"the published file ec2df627.*another name"):
        download.check(published)

    own = tmp_path / "own.pth"
    own.write_bytes(CONTENT)
    with caplog.at_level(logging.WARNING):
        download.check(own)
    assert "without a checksum" in caplog.text
    caplog.clear()
    beside = tmp_path / "own.pth.sha256"
    beside.write_text(f"{hashlib.sha256(CONTENT).hexdigest().upper()}  own.pth\n")  # as sha256sum writes it
    download.check(own)
    assert caplog.text == ""
    for wrong in ("", "0" * 64):
        beside.write_text(wrong)
        with pytest.raises(ModelLoadError, match=r"own\.pth\.sha256"):
            download.check(own)


def test_the_command_fetches_what_a_profile_names(
    hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "sam_vit_b_01ec64.pth"
    monkeypatch.setitem(download.CHECKPOINTS, name, hub.remote(name, CONTENT))
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("VLSAM_PROFILE", "gpu-8g")
    monkeypatch.setenv("VLSAM_VLM", NAME)
    assert main(["download"]) == 0
    assert (tmp_path / name).read_bytes() == CONTENT
    assert download.complete(tmp_path / NAME)
    assert capsys.readouterr().out.splitlines() == [
        f"{NAME}: revision {COMMIT}, complete, checksums agree, in {tmp_path / NAME}",
        f"{name}: complete, checksums agree, in {tmp_path / name}",
    ]


def test_the_profile_for_a_server_needs_the_hub_alone(
    hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = choose("gpu-80g")
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    sam = {**MODEL, "config.json": b'{"model_type": "sam2_video"}', "model.safetensors": CONTENT}
    names = []
    for pinned, files in ((profile.vlm, MODEL), (profile.sam, sam)):
        name, _, commit = pinned.partition("@")
        names.append(name)
        hub.repositories[name], hub.commits[name, commit] = {}, dict(files)
    assert main(["download", "--profile", "gpu-80g"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: revision {pinned.partition('@')[2]}, complete, checksums agree, in {tmp_path / name}"
        for name, pinned in zip(names, (profile.vlm, profile.sam), strict=True)
    ]
    assert all(download.complete(tmp_path / name) for name in names)


def test_every_model_of_the_hub_in_a_profile_is_pinned_to_a_commit() -> None:
    named = [name for profile in PROFILES.values() for name in (profile.vlm, profile.sam)]
    remote = [n for n in named if not download.looks_local(n) and n not in download.CHECKPOINTS]
    assert len(remote) == 4
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name) for name in remote)


# Models that the hub gives to some only


GATED = {"X-Error-Code": "GatedRepo"}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("token", ["sesame", ""])
@pytest.mark.parametrize("headers", [GATED, {}])
def test_a_gated_model_whose_files_are_refused_is_said_with_what_to_do(
    hub: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    token: str,
    headers: dict[str, str],
) -> None:
    """The hub lists them to anybody."""
    monkeypatch.setenv("HF_TOKEN", token)
    hub.refusal = (status, headers)
    with pytest.raises(ModelLoadError, match=rf"does not give {NAME} \(HTTP {status}\)") as error:
        download.hub(NAME, tmp_path)
    said = str(error.value)
    assert f"accept its licence at {hub.url}/{NAME}" in said
    assert "HF_TOKEN" in said
    assert "\n" not in said
    assert "sesame" not in said
    if headers:
        assert ("has no access" in said) == bool(token)


def test_a_gated_model_that_is_not_even_listed_is_said_the_same_way(hub: Site, tmp_path: Path) -> None:
    hub.listing_refusal = (403, GATED)
    with pytest.raises(ModelLoadError, match=r"403\): it is gated.* HF_TOKEN has no access; accept its"):
        download.hub(NAME, tmp_path)


@pytest.mark.parametrize(
    "said", ["Invalid credentials in Authorization header", 'User Access Token "mine" is expired']
)
def test_a_token_that_is_not_valid_any_longer_is_said(hub: Site, tmp_path: Path, said: str) -> None:
    hub.listing_refusal = (401, {"X-Error-Message": said})
    with pytest.raises(ModelLoadError, match="the token in HF_TOKEN is wrong or has expired; set a new one"):
        download.hub(NAME, tmp_path)


def test_where_the_hub_keeps_its_files_nobody_is_asked_for_a_licence(hub: Site, tmp_path: Path) -> None:
    with running() as elsewhere:
        elsewhere.status = 403  # as for an address whose signature has expired
        hub.moved = f"http://localhost:{elsewhere.server_port}"
        with pytest.raises(ModelLoadError, match="HTTP 403") as error:
            download.hub(NAME, tmp_path)
    assert "licence" not in str(error.value)


# Models that cannot be used


def test_an_unknown_family_is_refused_before_its_gigabytes_are_fetched(
    hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[NAME]["config.json"] = b'{"model_type": "blip"}'
    with pytest.raises(ModelLoadError, match="token grid of 'blip' models is not known"):
        VLM.load(NAME, device="cpu", folder=tmp_path)
    with pytest.raises(ModelLoadError, match="kind 'blip', which is no segmenter known here"):
        Segmenter.load(NAME, device="cpu", folder=tmp_path)
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("VLSAM_VLM", NAME)
    assert main(["download"]) == 2
    assert "token grid of 'blip'" in capsys.readouterr().err
    assert {path.rsplit("/")[-1] for path, _, _ in hub.asked if "resolve" in path} == {"config.json"}
    assert not list((tmp_path / NAME).glob("*.safetensors*"))


def test_a_segmenter_that_takes_no_names_is_refused_before_it_is_fetched(hub: Site, tmp_path: Path) -> None:
    hub.repositories[NAME]["config.json"] = b'{"model_type": "sam2_video"}'
    with pytest.raises(ModelLoadError, match=r"tiny-vl takes no noun phrases.*take SAM 3"):
        Segmenter.load(NAME, device="cpu", folder=tmp_path, concepts=True)
    assert not list((tmp_path / NAME).glob("*.safetensors*"))


# Which files a name means

OTHER = "d" * 40
MIDDLE = CONTENT[:1_000_000] + b"?" + CONTENT[1_000_001:]  # one byte, which no sample of a file may hit
WEIGHTS = "model-00001-of-00002.safetensors"


@pytest.fixture
def two_commits(hub: Site) -> Site:
    hub.commits[NAME, OTHER] = {**MODEL, WEIGHTS: MIDDLE}
    return hub


def versions(tmp_path: Path, name: str = NAME) -> tuple[str, str]:
    profile = choose(vlm=name, sam=name, folder=tmp_path)
    return version_of(profile), segmenter_version_of(profile)


def test_two_revisions_under_one_name_have_two_versions(two_commits: Site, tmp_path: Path) -> None:
    download.fetch_hub(NAME, tmp_path / "a")
    download.fetch_hub(f"{NAME}@{OTHER}", tmp_path / "b")
    one, other = versions(tmp_path / "a"), versions(tmp_path / "b")
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_a_classifiers_revision_counts_as_well(two_commits: Site, tmp_path: Path) -> None:
    def version(name: str) -> str:
        return version_of(choose(), Options(classifier=name))

    before, other = version(NAME), version(f"{NAME}@{OTHER}")
    assert before != other
    snapshot_download(NAME)  # as transformers would
    two_commits.commits[NAME, "main"] = two_commits.commits[NAME, OTHER]
    assert version(NAME) == before  # what is there stays
    assert version(str(tmp_path)) not in (before, other)
    (tmp_path / "model.safetensors").write_bytes(CONTENT)
    one = version(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(MIDDLE[::-1])
    assert version(str(tmp_path)) != one


def test_the_version_is_the_same_before_and_after_the_weights_come(two_commits: Site, tmp_path: Path) -> None:
    before = versions(tmp_path)
    assert not list((tmp_path / NAME).glob("*.safetensors"))
    download.hub(NAME, tmp_path)
    assert versions(tmp_path) == before
    two_commits.asked.clear()
    assert versions(tmp_path) == before
    assert two_commits.asked == []  # what is at hand needs no hub


def test_the_version_is_the_same_however_the_files_came(hub: Site, tmp_path: Path) -> None:
    cached = Path(snapshot_download(NAME))
    assert not (tmp_path / "none" / NAME).exists()
    from_cache = versions(tmp_path / "none")
    copied = tmp_path / "copied" / NAME
    copied.mkdir(parents=True)
    for name in NEEDED:
        (copied / name).write_bytes((cached / name).read_bytes())
    by_hand = versions(tmp_path / "copied")
    cached.rename(tmp_path / "away")
    download.fetch_hub(NAME, tmp_path / "fetched")
    assert from_cache == by_hand == versions(tmp_path / "fetched")


def test_weights_that_were_replaced_by_hand_are_noticed(hub: Site, tmp_path: Path) -> None:
    folder = download.hub(NAME, tmp_path)
    before = versions(tmp_path)
    (folder / WEIGHTS).write_bytes(CONTENT[::-1])
    assert versions(tmp_path)[0] != before[0]


def test_weights_are_read_in_full_once(hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / NAME
    folder.mkdir(parents=True)
    for name in NEEDED:
        (folder / name).write_bytes(MODEL[name])
    read: list[str] = []
    usual = download._digest

    def digest(file: Path, *, git: bool = False) -> str:
        read.append(file.name)
        return usual(file, git=git)

    monkeypatch.setattr(download, "_digest", digest)
    assert versions(tmp_path) == versions(tmp_path)
    assert read.count(WEIGHTS) == 1


def test_large_files_of_one_size_are_told_apart_by_samples(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(CONTENT)
    before = download.sampled(file)
    for place in (0, len(CONTENT) // 2, len(CONTENT) - 9000):
        file.write_bytes(CONTENT[:place] + bytes(9000) + CONTENT[place + 9000 :])
        assert download.sampled(file) != before


def test_a_model_stays_at_the_revision_that_was_fetched_first(
    two_commits: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{NAME}@{OTHER}"
    download.fetch_hub(name, tmp_path)
    assert download.revision(NAME, tmp_path) == OTHER
    download.fetch_hub(NAME, tmp_path)  # though main is another
    assert download.revision(NAME, tmp_path) == OTHER
    assert (tmp_path / NAME / WEIGHTS).read_bytes() == MIDDLE

    download.fetch_hub(f"{NAME}@main", tmp_path)
    assert download.revision(NAME, tmp_path) == COMMIT
    assert (tmp_path / NAME / WEIGHTS).read_bytes() == CONTENT


def test_another_commit_than_the_name_says_is_refused(two_commits: Site, tmp_path: Path) -> None:
    download.fetch_hub(NAME, tmp_path)
    for wanted in (OTHER, OTHER[:8]):
        with pytest.raises(
            ModelLoadError, match=rf"holds {NAME} at c+, and d+ is asked for: run `vlsam down"
        ):
            download.hub(f"{NAME}@{wanted}", tmp_path)
    for wanted in (COMMIT, COMMIT[:8], "main"):
        assert download.hub(f"{NAME}@{wanted}", tmp_path) == tmp_path / NAME


def test_a_revision_that_there_is_not_is_said(hub: Site, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=f"the model has no revision {OTHER}"):
        download.hub(f"{NAME}@{OTHER}", tmp_path)


def test_a_change_of_revision_that_is_broken_off_leaves_no_mixture(two_commits: Site, tmp_path: Path) -> None:
    folder = download.fetch_hub(NAME, tmp_path)
    two_commits.commits[NAME, OTHER] = {**MODEL, WEIGHTS: MIDDLE, "tokenizer.json": b"{}"}
    two_commits.breaks = [10_000, 0]  # of the first file that must come: the tokenizer has 2 bytes
    with pytest.raises(ModelLoadError, match="run `vlsam download`"):
        download.fetch_hub(f"{NAME}@{OTHER}", tmp_path)
    assert not download.complete(folder)
    assert download.hub(NAME, tmp_path) == folder  # at the revision that was begun
    assert (folder / WEIGHTS).read_bytes() == MIDDLE
    assert download.revision(NAME, tmp_path) == OTHER


def test_the_shards_of_another_revision_go(hub: Site, tmp_path: Path) -> None:
    folder = download.fetch_hub(NAME, tmp_path)
    hub.commits[NAME, OTHER] = {
        **{name: content for name, content in MODEL.items() if not name.startswith("model")},
        "model.safetensors": CONTENT,
    }
    download.fetch_hub(f"{NAME}@{OTHER}", tmp_path)
    assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"]


def test_local_models_need_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", "--profile", "builtin"]) == 0
    assert capsys.readouterr().out.count("nothing to fetch") == 2
    monkeypatch.setenv("VLSAM_SAM", str(tmp_path / "sam.pth"))
    assert main(["download"]) == 2
    assert f"{tmp_path}/sam.pth does not exist" in capsys.readouterr().err


def test_settings_say_which_weights_and_how() -> None:
    given = {"VLSAM_PROFILE": "gpu-8g", "VLSAM_DTYPE": "float16", "MODEL_DIR": "/models"}
    assert Settings.from_env(given).models.select() == choose(
        "gpu-8g", dtype="float16", folder=Path("/models")
    )
    plain = Settings.from_env({**given, "VLSAM_QUANTIZATION": "None"})
    assert plain.models.select().quantization == "none"
    assert plain.models.select("builtin").name == "builtin"
    with pytest.raises(SettingsError, match=r"VLSAM_QUANTIZATION is '2bit'.*: it must be none, 4bit or 8bit"):
        Settings.from_env({"VLSAM_QUANTIZATION": "2bit"})


def test_help_says_where_weights_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["download", "--help"])
    assert "$MODEL_DIR/sam_vit_b_01ec64.pth" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "local"),
    [("Qwen/Qwen2.5-VL-3B-Instruct", False), ("./vlm", True), ("/models/vlm", True), ("model", True)],
)
def test_folders_and_hub_ids_are_told_apart(name: str, local: bool) -> None:
    assert download.looks_local(name) is local


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        ("mobile_sam.pt", True),
        ("facebook/sam2.1-hiera-tiny", True),
        ("own.pth", False),
        ("weights/own.safetensors", False),
        ("/models/sam2", False),
        ("model", False),
    ],
)
def test_segmenters_to_fetch_and_paths_are_told_apart(name: str, remote: bool) -> None:
    assert download.is_remote_sam(name) is remote
