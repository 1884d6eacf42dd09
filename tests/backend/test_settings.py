from dataclasses import fields

import pytest

from backend.settings import Group, Settings, SettingsError
from model.options import ASK, Options
from model.profiles import PROFILES
from model.recipes import RECIPES
from model.vlm.remote_vlm import RemoteVLM
from tests.support.settings import settings_with


def test_defaults_need_no_environment() -> None:
    settings = Settings.from_env({})
    assert settings == Settings()
    assert (settings.models.profile, settings.server.port, settings.answers.deadline) == (
        "builtin",
        9090,
        90.0,
    )
    assert settings.detection.options == Options()  # whose recipe tests/model/test_options.py looks at


def test_values_are_typed() -> None:
    settings = Settings.from_env(
        {
            "PORT": "9091",
            "VLSAM_DEADLINE": "12.5",
            "LABEL_STUDIO_URL": "http://studio:8080/",
            "LOG_LEVEL": "debug",
        }
    )
    assert settings.server.port == 9091
    assert settings.answers.deadline == 12.5
    assert settings.label_studio.url == "http://studio:8080"
    assert settings.log.level == "DEBUG"


def test_pixels_of_the_vlm_are_the_profiles_unless_they_are_set() -> None:
    assert Settings().models.select("gpu-24g").pixels == PROFILES["gpu-24g"].pixels
    given = Settings.from_env({"VLSAM_MAX_VLM_PIXELS": "500000"})
    assert given.models.select("gpu-24g").pixels == 500_000
    with pytest.raises(SettingsError, match="VLSAM_MAX_VLM_PIXELS"):
        Settings.from_env({"VLSAM_MAX_VLM_PIXELS": "none"})


def test_allowed_hosts() -> None:
    settings = Settings.from_env({"VLSAM_ALLOWED_HOSTS": "Minio:9000, 10.0.0.7,[fd00::1]:80,[fd00::2]"})
    assert settings.images.allowed_hosts == (
        ("minio", 9000),
        ("10.0.0.7", None),
        ("fd00::1", 80),
        ("fd00::2", None),
    )


def test_other_addresses_of_label_studio() -> None:
    settings = Settings.from_env(
        {
            "LABEL_STUDIO_URL": "http://studio:8080",
            "VLSAM_LABEL_STUDIO_HOSTS": "https://label.example.com/, studio:8080,example.com/ls/, [::1]:80",
        }
    )
    assert settings.label_studio.hosts == (
        "https://label.example.com",
        "studio:8080",
        "example.com/ls",
        "[::1]:80",
    )


def test_an_empty_variable_counts_as_not_set() -> None:
    assert Settings.from_env({"LABEL_STUDIO_URL": "", "PORT": " "}) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PORT", "http", "PORT is 'http', which cannot be used: it must be a whole number from 1 to 65535."),
        ("PORT", "0", "a whole number from 1 to 65535"),
        ("VLSAM_DEADLINE", "nan", "a number of seconds from 0.05 to 3600"),
        ("LABEL_STUDIO_URL", "studio:8080", "an address that starts with http:// or https://"),
        ("LABEL_STUDIO_URL", "http://me:sesame@studio", "without a user"),
        ("VLSAM_ALLOWED_HOSTS", "http://minio", "names or addresses of hosts with commas"),
        ("VLSAM_ALLOWED_HOSTS", "minio,", "names or addresses of hosts with commas"),
        ("VLSAM_LABEL_STUDIO_HOSTS", "https://me:sesame@label.example.com", "addresses with commas between"),
        ("VLSAM_LABEL_STUDIO_HOSTS", "studio,", "addresses with commas between"),
        ("VLSAM_LABEL_STUDIO_HOSTS", "ftp://studio", "addresses with commas between"),
        ("VLSAM_LABEL_STUDIO_HOSTS", "studio", "of no use without LABEL_STUDIO_URL"),
        ("LOCAL_FILES_DOCUMENT_ROOT", "/", "and not /"),
        ("LOCAL_FILES_DOCUMENT_ROOT", "/nowhere/at/all", "a folder that exists"),
        ("LOCAL_FILES_DOCUMENT_ROOT", ".", "the absolute path"),
        ("REQUESTS_CA_BUNDLE", "/nowhere.pem", "that exists"),
        ("LOG_LEVEL", "chatty", "DEBUG, INFO, WARNING or ERROR"),
        ("BASIC_AUTH_USER", "me", "must be set together"),
        ("VLSAM_ATTENTION", "magic", "naive, paper, best"),
        ("VLSAM_POINTS", "pair, dog=circles", "peak, pair, maxima, kmeans, or TERM=METHOD"),
        ("VLSAM_LOCALIZER", "ears", "attention, boxes, both or concept"),
        ("VLSAM_VIEWS", "all", "whole or corners"),
        ("VLSAM_PRESENCE", "nan", "a number from 0 to 1"),
        ("VLSAM_QUESTIONS", "|", "at least one question"),
        ("VLSAM_VOCABULARY", "closed", "open, project or both"),
        ("VLSAM_SIMILARITY", "2", "a number from 0 to 1"),
        ("VLSAM_LEFTOVER", "other", "drop, keep or other:LABEL"),
        ("VLSAM_LEFTOVER", "other: ", "drop, keep or other:LABEL"),
        ("VLSAM_LEFTOVER", "keep:Thing", "drop, keep or other:LABEL"),
        ("VLSAM_DEVICE", "gpu", "auto, cpu, cuda, cuda:1 ..., mps, xpu, balanced"),
        ("VLSAM_DEVICE", "cuda:x", "or sequential"),
        ("VLSAM_LISTING_URL", "vllm:8000", "an address that starts with http:// or https://"),
        ("VLSAM_LISTING_URL", "http://vllm:8000/v1", "VLSAM_LISTING_MODEL go together"),
        ("VLSAM_LISTING_KEY", "sesame", "of no use without VLSAM_LISTING_URL"),
    ],
)
def test_an_invalid_value_is_one_sentence(name: str, value: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence.replace("(", r"\(")) as caught:
        Settings.from_env({name: value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_how_the_models_are_used() -> None:
    options = Settings.from_env(
        {
            "VLSAM_ATTENTION": "paper",
            "VLSAM_POINTS": "maxima, Crowd=kmeans, key = peak",
            "VLSAM_LOCALIZER": "concept",
            "VLSAM_EXEMPLARS": "never",
            "VLSAM_VIEWS": "corners",
            "VLSAM_QUESTIONS": "What is there? | Who is there?",
            "VLSAM_PRESENCE": "0.5",
        }
    ).detection.options
    assert options.recipe == RECIPES["paper"]
    assert (options.points, options.term_points) == ("maxima", (("crowd", "kmeans"), ("key", "peak")))
    assert (options.localizer, options.exemplars) == ("concept", "never")
    assert (options.views, options.presence) == ("corners", 0.5)
    assert options.questions == ("What is there?", "Who is there?")
    assert Settings.from_env({"VLSAM_QUESTIONS": "ask"}).detection.options.questions == ASK
    assert Settings().detection.options == Options()


@pytest.mark.parametrize("device", ["auto", "cpu", "CUDA", "cuda:12", "mps", "xpu:1", "balanced"])
def test_where_the_models_run(device: str) -> None:
    assert Settings.from_env({"VLSAM_DEVICE": device}).models.device == device.lower()


def test_what_becomes_of_terms_without_a_label() -> None:
    assert Settings.from_env({"VLSAM_LEFTOVER": "Keep"}).answers.leftover == "keep"
    assert Settings.from_env({"VLSAM_LEFTOVER": "other: Any thing"}).answers.leftover == "other:Any thing"
    assert Settings.from_env({"VLSAM_VOCABULARY": "project"}).detection.options.vocabulary == "project"


def test_who_lists() -> None:
    where = {
        "VLSAM_LISTING_URL": "http://vllm:8000/v1/",
        "VLSAM_LISTING_MODEL": "big",
        "VLSAM_LISTING_KEY": "k",
    }
    assert Settings.from_env(where).detection.options.remote_vlm == RemoteVLM(
        "big", "http://vllm:8000/v1", "k"
    )
    with pytest.raises(SettingsError, match="of no use with VLSAM_LOCALIZER=boxes"):
        Settings.from_env({**where, "VLSAM_LOCALIZER": "boxes"})


def test_secrets_are_not_shown() -> None:
    settings = settings_with(
        label_studio_api_key="sesame",
        basic_auth_user="me",
        basic_auth_pass="hush",
        listing_url="http://vllm:8000/v1",
        listing_model="big",
        listing_key="quiet",
    )
    for shown in (repr(settings), repr(settings.detection.options)):
        assert not any(secret in shown for secret in ("sesame", "hush", "quiet"))


def test_one_thread_stays_free_for_health() -> None:
    assert settings_with(threads=8, queue=24).server.admitted == 7
    assert settings_with(threads=32, queue=24).server.admitted == 24


@pytest.mark.parametrize(("group", "kind"), Settings.groups().items())
def test_a_value_has_one_name_from_environment_to_use(group: str, kind: type[Group]) -> None:
    for spec, (variable, _, about) in zip(fields(kind), kind.table(), strict=True):  # type: ignore[arg-type]
        assert spec.name == variable.lower().removeprefix("vlsam_").removeprefix(f"{group}_")
        assert about.endswith(".")


def test_defaults_are_shown_as_they_are_set() -> None:
    rows = {name: default for group in Settings.groups().values() for name, default, _ in group.table()}
    shown = {name: default for name, default in rows.items() if default}
    assert Settings.from_env(shown) == Settings()
    assert shown["VLSAM_DEADLINE"] == "90"
