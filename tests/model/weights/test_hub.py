import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download, snapshot_download

from backend.commands.cli import main
from backend.settings import Settings, SettingsError
from model.options import Options
from model.profiles import PROFILES, choose
from model.segmentation.segmenter import Segmenter
from model.types import ModelLoadError
from model.versions import segmenter_version_of, version_of
from model.vlm.vlm import VLM
from model.weights import files, hub, names
from model.weights.sam_checkpoints import CHECKPOINTS
from tests.support.loopback import COMMIT, Site, running, stand_in_for_hub

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
def fake_hub(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The loopback server in place of the fake_hub, whose library has an empty cache."""
    stand_in_for_hub(monkeypatch, site.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "sesame")
    site.repositories[NAME] = dict(MODEL)
    return site


@pytest.fixture
def nowhere() -> str:
    """The address of a server that is gone."""
    with running() as server:
        return server.url


def downloads(site: Site) -> list[tuple[str, str]]:
    """The files of models that were asked for, with the ranges."""
    return [(path.rpartition("/")[2], asked) for path, asked, _ in site.asked if "resolve" in path]


def test_a_model_of_the_hub_comes_with_what_it_needs_only(fake_hub: Site, tmp_path: Path) -> None:
    folder = hub.fetch(NAME, tmp_path)
    assert folder == tmp_path / NAME
    assert {f.name for f in folder.glob("[!.]*") if f.is_file()} == NEEDED
    assert all((folder / name).read_bytes() == MODEL[name] for name in NEEDED)
    assert all(token == "Bearer sesame" for path, _, token in fake_hub.asked if "resolve" in path)

    fake_hub.asked.clear()
    (folder / "config.json").write_bytes(b"[]")
    hub.fetch(NAME, tmp_path)
    assert [path.rsplit("/")[-1] for path, _, _ in fake_hub.asked if "resolve" in path] == ["config.json"]

    fake_hub.asked.clear()
    assert hub.ensure(NAME, tmp_path) == folder
    assert fake_hub.asked == []  # what is complete is loaded without a word to the hub
    assert constants.HF_HUB_DISABLE_XET  # its client follows no rule of model/connections.py


def test_the_hubs_token_goes_to_no_other_host(fake_hub: Site, tmp_path: Path) -> None:
    with running() as elsewhere:
        elsewhere.files = {f"/{name}": content for name, content in MODEL.items()}
        fake_hub.moved = f"http://localhost:{elsewhere.server_port}"
        hub.fetch(NAME, tmp_path)
        assert len(elsewhere.asked) == len(NEEDED)
        assert {token for _, _, token in elsewhere.asked} == {""}


def test_an_interrupted_model_goes_on_and_is_incomplete_until_then(fake_hub: Site, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    orphan = folder / ".cache" / "huggingface" / "download" / "x.0f.incomplete"  # of a killed process
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(CONTENT)
    for name in NEEDED - {"model-00002-of-00002.safetensors"}:
        (folder / name).write_bytes(MODEL[name])
    assert not hub.complete(folder)
    assert hub.ensure(NAME, tmp_path) == folder
    assert hub.complete(folder)
    assert downloads(fake_hub) == [("model-00002-of-00002.safetensors", "")]
    assert not orphan.exists()


def test_a_broken_connection_is_taken_up_again(
    fake_hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    fake_hub.repositories[NAME] = {"config.json": b"{}", "model.safetensors": CONTENT}
    fake_hub.breaking, fake_hub.breaks = ".safetensors", [1_500_000]
    folder = hub.fetch(NAME, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    ranges = [asked for name, asked in downloads(fake_hub) if name == "model.safetensors"]
    assert ranges == ["", "bytes=1500000-"]


def test_other_bytes_than_the_hub_lists_never_stay(fake_hub: Site, tmp_path: Path) -> None:
    fake_hub.repositories[NAME] = {"config.json": b"{}", "model.safetensors": CONTENT}
    with running() as elsewhere:
        elsewhere.files = {"/config.json": b"{}", "/model.safetensors": CONTENT[::-1]}
        fake_hub.moved = f"http://localhost:{elsewhere.server_port}"
        with pytest.raises(ModelLoadError, match=r"model.safetensors of .* came with another checksum"):
            hub.fetch(NAME, tmp_path)
    assert not (tmp_path / NAME / "model.safetensors").exists()


def test_f28_a_full_disk_is_one_sentence(
    fake_hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(ModelLoadError, match="cannot be used for weights: No space left on device"):
        hub.fetch(NAME, tmp_path)


def test_one_whole_file_is_preferred_to_the_same_in_shards(fake_hub: Site, tmp_path: Path) -> None:
    fake_hub.repositories[NAME]["model.safetensors"] = CONTENT
    folder = hub.fetch(NAME, tmp_path)
    assert [f.name for f in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert hub.complete(folder)


def test_the_hub_librarys_own_cache_is_used(fake_hub: Site, tmp_path: Path) -> None:
    cached = Path(snapshot_download(NAME))
    fake_hub.asked.clear()
    assert hub.ensure(NAME, tmp_path / "ours") == cached
    assert hub.fetch(NAME, tmp_path / "ours") == cached
    assert fake_hub.asked == []
    weights = (cached / "model-00001-of-00002.safetensors").resolve()
    weights.chmod(0o644)
    weights.write_bytes(CONTENT[::-1])
    assert hub.fetch(NAME, tmp_path / "ours") == tmp_path / "ours" / NAME
    (cached / "model-00002-of-00002.safetensors").unlink()
    fake_hub.status = 500
    assert hub.ensure(NAME, tmp_path / "ours") == tmp_path / "ours" / NAME


def test_without_the_hub_a_sentence_says_what_to_copy_where(
    fake_hub: Site, nowhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_hub(monkeypatch, nowhere)
    with pytest.raises(ModelLoadError) as error:
        hub.ensure(NAME, tmp_path)
    assert f"*.json, *.jinja, *.txt, *.model and model*.safetensors files into {tmp_path / NAME}" in str(
        error.value
    )
    (tmp_path / NAME).mkdir(parents=True)
    for name in NEEDED:
        (tmp_path / NAME / name).write_bytes(MODEL[name])
    assert hub.ensure(NAME, tmp_path) == tmp_path / NAME
    with pytest.raises(ModelLoadError, match="is complete and will be loaded, but its checksums cannot"):
        hub.fetch(NAME, tmp_path)


def test_a_model_that_is_not_there_or_not_for_you_is_said(fake_hub: Site, tmp_path: Path) -> None:
    for status in (401, 404):
        fake_hub.status = status
        with pytest.raises(ModelLoadError, match=f"HTTP {status}.*HF_TOKEN"):
            hub.ensure(NAME, tmp_path)
    fake_hub.status = 0
    fake_hub.repositories[NAME] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(ModelLoadError, match="no safetensors"):
        hub.ensure(NAME, tmp_path)


@pytest.mark.parametrize("name", ["some body/tiny", "a/tiny--vl", "a/-tiny@main", f"a/{'b' * 99}"])
def test_a_malformed_id_is_said_with_what_an_id_looks_like(fake_hub: Site, tmp_path: Path, name: str) -> None:
    for call in (hub.ensure, hub.file_digests):
        with pytest.raises(ModelLoadError, match=r"malformed .* an id is owner/name, such as"):
            call(name, tmp_path)
    assert fake_hub.asked == []


def test_the_command_fetches_what_a_profile_names(
    fake_hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "sam_vit_b_01ec64.pth"
    monkeypatch.setitem(CHECKPOINTS, name, fake_hub.checkpoint(name, CONTENT))
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("VLSAM_PROFILE", "gpu-8g")
    monkeypatch.setenv("VLSAM_VLM", NAME)
    assert main(["download"]) == 0
    assert (tmp_path / name).read_bytes() == CONTENT
    assert hub.complete(tmp_path / NAME)
    assert capsys.readouterr().out.splitlines() == [
        f"{NAME}: revision {COMMIT}, complete, checksums agree, in {tmp_path / NAME}",
        f"{name}: complete, checksums agree, in {tmp_path / name}",
    ]


def test_the_profile_for_a_server_needs_the_hub_alone(
    fake_hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = choose("gpu-80g")
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    sam = {**MODEL, "config.json": b'{"model_type": "sam2_video"}', "model.safetensors": CONTENT}
    names = []
    for pinned, contents in ((profile.vlm, MODEL), (profile.sam, sam)):
        name, _, commit = pinned.partition("@")
        names.append(name)
        fake_hub.repositories[name], fake_hub.commits[name, commit] = {}, dict(contents)
    assert main(["download", "--profile", "gpu-80g"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: revision {pinned.partition('@')[2]}, complete, checksums agree, in {tmp_path / name}"
        for name, pinned in zip(names, (profile.vlm, profile.sam), strict=True)
    ]
    assert all(hub.complete(tmp_path / name) for name in names)


def test_every_model_of_the_hub_in_a_profile_is_pinned_to_a_commit() -> None:
    named = [name for profile in PROFILES.values() for name in (profile.vlm, profile.sam)]
    remote = [n for n in named if not names.is_local(n) and n not in CHECKPOINTS]
    assert len(remote) == 4
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name) for name in remote)


# Models that the hub gives to some only


GATED = {"X-Error-Code": "GatedRepo"}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("token", ["sesame", ""])
@pytest.mark.parametrize("headers", [GATED, {}])
def test_a_gated_model_whose_files_are_refused_is_said_with_what_to_do(
    fake_hub: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    token: str,
    headers: dict[str, str],
) -> None:
    """The hub lists them to anybody."""
    monkeypatch.setenv("HF_TOKEN", token)
    fake_hub.refusal = (status, headers)
    with pytest.raises(ModelLoadError, match=rf"does not give {NAME} \(HTTP {status}\)") as error:
        hub.ensure(NAME, tmp_path)
    said = str(error.value)
    assert f"accept its licence at {fake_hub.url}/{NAME}" in said
    assert "HF_TOKEN" in said
    assert "\n" not in said
    assert "sesame" not in said
    if headers:
        assert ("has no access" in said) == bool(token)


def test_a_gated_model_that_is_not_even_listed_is_said_the_same_way(fake_hub: Site, tmp_path: Path) -> None:
    fake_hub.listing_refusal = (403, GATED)
    with pytest.raises(ModelLoadError, match=r"403\): it is gated.* HF_TOKEN has no access; accept its"):
        hub.ensure(NAME, tmp_path)


@pytest.mark.parametrize(
    "said", ["Invalid credentials in Authorization header", 'User Access Token "mine" is expired']
)
def test_a_token_that_is_not_valid_any_longer_is_said(fake_hub: Site, tmp_path: Path, said: str) -> None:
    fake_hub.listing_refusal = (401, {"X-Error-Message": said})
    with pytest.raises(ModelLoadError, match="the token in HF_TOKEN is wrong or has expired; set a new one"):
        hub.ensure(NAME, tmp_path)


def test_where_the_hub_keeps_its_files_nobody_is_asked_for_a_licence(fake_hub: Site, tmp_path: Path) -> None:
    with running() as elsewhere:
        elsewhere.status = 403  # as for an address whose signature has expired
        fake_hub.moved = f"http://localhost:{elsewhere.server_port}"
        with pytest.raises(ModelLoadError, match="HTTP 403") as error:
            hub.ensure(NAME, tmp_path)
    assert "licence" not in str(error.value)


# Models that cannot be used


def test_an_unknown_family_is_refused_before_its_gigabytes_are_fetched(
    fake_hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_hub.repositories[NAME]["config.json"] = b'{"model_type": "blip"}'
    with pytest.raises(ModelLoadError, match="token grid of 'blip' models is not known"):
        VLM.load(NAME, device="cpu", folder=tmp_path)
    with pytest.raises(ModelLoadError, match="kind 'blip', which is not a supported segmenter"):
        Segmenter.load(NAME, device="cpu", folder=tmp_path)
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("VLSAM_VLM", NAME)
    assert main(["download"]) == 2
    assert "token grid of 'blip'" in capsys.readouterr().err
    assert {path.rsplit("/")[-1] for path, _, _ in fake_hub.asked if "resolve" in path} == {"config.json"}
    assert not list((tmp_path / NAME).glob("*.safetensors*"))


@pytest.mark.parametrize("weight_map", [{}, {"a": 5}, {"a": None}, {"a": ["b"]}, {"a": "b" * 400}, "a"])
def test_an_index_of_anything_is_no_complete_model(
    fake_hub: Site, tmp_path: Path, weight_map: object
) -> None:
    index = json.dumps({"weight_map": weight_map}).encode()
    fake_hub.repositories[NAME]["model.safetensors.index.json"] = index
    hub.fetch(NAME, tmp_path)
    assert hub.find(NAME, tmp_path) is None


@pytest.mark.parametrize("config", [b"{", b"\xff", b"[" * 100_000])
def test_a_config_that_is_not_json_is_said(fake_hub: Site, tmp_path: Path, config: bytes) -> None:
    fake_hub.repositories[NAME]["config.json"] = config
    with pytest.raises(ModelLoadError, match=r"config\.json is not JSON"):
        hub.ensure(NAME, tmp_path)


@pytest.mark.parametrize("name", ["../a.json", "/a.json", "b/../a.json", "..\\a.json", "a\0.json"])
def test_a_file_whose_name_leads_elsewhere_is_not_downloaded(
    fake_hub: Site, tmp_path: Path, name: str
) -> None:
    fake_hub.repositories[NAME][name] = b"{}"
    folder = hub.fetch(NAME, tmp_path)
    assert {f.name for f in folder.glob("[!.]*") if f.is_file()} == NEEDED


def test_a_name_that_no_disk_takes_is_one_sentence(fake_hub: Site, tmp_path: Path) -> None:
    fake_hub.repositories[NAME][f"{'a' * 300}.json"] = b"{}"
    with pytest.raises(ModelLoadError, match="cannot be used for weights: File name too long"):
        hub.ensure(NAME, tmp_path)


def test_a_segmenter_that_takes_no_names_is_refused_before_it_is_fetched(
    fake_hub: Site, tmp_path: Path
) -> None:
    fake_hub.repositories[NAME]["config.json"] = b'{"model_type": "sam2_video"}'
    with pytest.raises(ModelLoadError, match=r"tiny-vl takes no noun phrases.*take SAM 3"):
        Segmenter.load(NAME, device="cpu", folder=tmp_path, concepts=True)
    assert not list((tmp_path / NAME).glob("*.safetensors*"))


# Which files a name means

OTHER = "d" * 40
MIDDLE = CONTENT[:1_000_000] + b"?" + CONTENT[1_000_001:]  # one byte, which no sample of a file may hit
WEIGHTS = "model-00001-of-00002.safetensors"


@pytest.fixture
def two_commits(fake_hub: Site) -> Site:
    fake_hub.commits[NAME, OTHER] = {**MODEL, WEIGHTS: MIDDLE}
    return fake_hub


def versions(tmp_path: Path, name: str = NAME) -> tuple[str, str]:
    profile = choose(vlm=name, sam=name, folder=tmp_path)
    return version_of(profile), segmenter_version_of(profile)


def test_two_revisions_under_one_name_have_two_versions(two_commits: Site, tmp_path: Path) -> None:
    hub.fetch(NAME, tmp_path / "a")
    hub.fetch(f"{NAME}@{OTHER}", tmp_path / "b")
    one, other = versions(tmp_path / "a"), versions(tmp_path / "b")
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_a_classifiers_revision_counts_as_well(two_commits: Site, tmp_path: Path) -> None:
    local = tmp_path / "classifier"
    local.mkdir()

    def version(name: str, folder: Path = tmp_path) -> str:
        return version_of(choose(folder=folder), Options(classifier=name))

    before, other = version(NAME), version(f"{NAME}@{OTHER}", tmp_path / "other")
    assert before != other
    two_commits.commits[NAME, "main"] = two_commits.commits[NAME, OTHER]
    assert version(NAME) == before  # what was fetched first stays
    assert version(str(local)) not in (before, other)
    (local / "model.safetensors").write_bytes(CONTENT)
    one = version(str(local))
    (local / "model.safetensors").write_bytes(MIDDLE[::-1])
    assert version(str(local)) != one


def test_the_version_is_the_same_before_and_after_the_weights_come(two_commits: Site, tmp_path: Path) -> None:
    before = versions(tmp_path)
    assert not list((tmp_path / NAME).glob("*.safetensors"))
    hub.ensure(NAME, tmp_path)
    assert versions(tmp_path) == before
    two_commits.asked.clear()
    assert versions(tmp_path) == before
    assert two_commits.asked == []  # what is at hand needs no hub


def test_the_version_is_the_same_however_the_files_came(fake_hub: Site, tmp_path: Path) -> None:
    cached = Path(snapshot_download(NAME))
    assert not (tmp_path / "none" / NAME).exists()
    from_cache = versions(tmp_path / "none")
    copied = tmp_path / "copied" / NAME
    copied.mkdir(parents=True)
    for name in NEEDED:
        (copied / name).write_bytes((cached / name).read_bytes())
    by_hand = versions(tmp_path / "copied")
    cached.rename(tmp_path / "away")
    hub.fetch(NAME, tmp_path / "fetched")
    assert from_cache == by_hand == versions(tmp_path / "fetched")


def test_weights_that_were_replaced_by_hand_are_noticed(fake_hub: Site, tmp_path: Path) -> None:
    folder = hub.ensure(NAME, tmp_path)
    before = versions(tmp_path)
    (folder / WEIGHTS).write_bytes(CONTENT[::-1])
    assert versions(tmp_path)[0] != before[0]


def test_weights_are_read_in_full_once(
    fake_hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / NAME
    folder.mkdir(parents=True)
    for name in NEEDED:
        (folder / name).write_bytes(MODEL[name])
    read: list[str] = []
    usual = files.digest_of

    def digest(file: Path, *, git: bool = False) -> str:
        read.append(file.name)
        return usual(file, git=git)

    for module in (files, hub):
        monkeypatch.setattr(module, "digest_of", digest)
    assert versions(tmp_path) == versions(tmp_path)
    assert read.count(WEIGHTS) == 1


def test_a_model_stays_at_the_revision_that_was_fetched_first(
    two_commits: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{NAME}@{OTHER}"
    hub.fetch(name, tmp_path)
    assert hub.revision(NAME, tmp_path) == OTHER
    hub.fetch(NAME, tmp_path)  # though main is another
    assert hub.revision(NAME, tmp_path) == OTHER
    assert (tmp_path / NAME / WEIGHTS).read_bytes() == MIDDLE

    hub.fetch(f"{NAME}@main", tmp_path)
    assert hub.revision(NAME, tmp_path) == COMMIT
    assert (tmp_path / NAME / WEIGHTS).read_bytes() == CONTENT


def test_another_commit_than_the_name_says_is_refused(two_commits: Site, tmp_path: Path) -> None:
    hub.fetch(NAME, tmp_path)
    for wanted in (OTHER, OTHER[:8]):
        with pytest.raises(
            ModelLoadError, match=rf"holds {NAME} at c+, and d+ is asked for: run `vlsam down"
        ):
            hub.ensure(f"{NAME}@{wanted}", tmp_path)
    for wanted in (COMMIT, COMMIT[:8], "main"):
        assert hub.ensure(f"{NAME}@{wanted}", tmp_path) == tmp_path / NAME


def test_a_revision_that_there_is_not_is_said(fake_hub: Site, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=f"the model has no revision {OTHER}"):
        hub.ensure(f"{NAME}@{OTHER}", tmp_path)


def test_a_change_of_revision_that_is_broken_off_leaves_no_mixture(
    two_commits: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    folder = hub.fetch(NAME, tmp_path)
    two_commits.commits[NAME, OTHER] = {**MODEL, WEIGHTS: MIDDLE, "tokenizer.json": b"{}"}
    # The tokenizer comes, and of the weights nothing, however often the library asks.
    two_commits.breaking, two_commits.breaks = ".safetensors", [0] * 20
    with pytest.raises(ModelLoadError, match="run `vlsam download`"):
        hub.fetch(f"{NAME}@{OTHER}", tmp_path)
    two_commits.breaks = []
    assert not hub.complete(folder)
    assert hub.ensure(NAME, tmp_path) == folder  # at the revision that was begun
    assert (folder / WEIGHTS).read_bytes() == MIDDLE
    assert hub.revision(NAME, tmp_path) == OTHER


def test_the_shards_of_another_revision_go(fake_hub: Site, tmp_path: Path) -> None:
    folder = hub.fetch(NAME, tmp_path)
    fake_hub.commits[NAME, OTHER] = {
        **{name: content for name, content in MODEL.items() if not name.startswith("model")},
        "model.safetensors": CONTENT,
    }
    hub.fetch(f"{NAME}@{OTHER}", tmp_path)
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
