"""Parse the settings from environment variables, once, into immutable groups.

A setting is declared by its variable, its default, its parser and a description for
docs/reference/settings.md. A field is named like its variable, without `VLSAM_` and the name of its group.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

from model.options import Exemplars, LocalizerKind, Options, Views, Vocabulary
from model.profiles import DEVICE_MAPS, FOLDER, Dtype, Profile, Quantization, choose
from model.recipes import RECIPES, Points

OnOpen = Literal["annotate", "prewarm"]
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingsError(ValueError):
    """A setting has an invalid value. The message is one sentence and names the variable."""


# Parsers raise ValueError with what the value must be, as the end of a sentence.


def _match(form: str, value: str, expected: str) -> re.Match[str]:
    """Return the match of a pattern `form` with all of `value`. Raises ValueError(`expected`) if none."""
    if match := re.fullmatch(form, value):
        return match
    raise ValueError(expected)


def _secret(value: str) -> str:
    form = "[A-Za-z0-9._~-]{8,200}"  # needs no quoting in a URL or a header
    return _match(form, value, "8 to 200 letters, digits, dots, dashes, underscores and tildes")[0]


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("an address that starts with http:// or https://, without a user")
    return value.rstrip("/")


def _hosts(value: str) -> tuple[tuple[str, int | None], ...]:
    """Parse a list of hosts into (host in lower case, port) pairs. The port is None for any port."""
    form = r"\s*([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?\s*"
    expected = "names or addresses of hosts with commas between, as in `minio:9000, 10.0.0.7`"
    matches = [_match(form, entry, expected) for entry in value.lower().split(",")]
    return tuple((match[1].strip("[]"), int(match[2]) if match[2] else None) for match in matches)


def _label_studio_hosts(value: str) -> tuple[str, ...]:
    """Parse a list of addresses, with or without scheme, port and path. Final slashes are removed."""
    form = r"(?i)(https?://)?([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?(/[\w.~/-]*)?"
    expected = "addresses with commas between, as in `https://label.example.com, studio:8080, example.com/ls`"
    entries = (entry.strip().rstrip("/") for entry in value.split(","))
    return tuple(_match(form, entry, expected)[0] for entry in entries)


def _folder(value: str) -> Path:
    folder = Path(value)
    # "/" would expose every file of the machine.
    if not folder.is_absolute() or not folder.is_dir() or folder.resolve() == Path(folder.anchor):
        raise ValueError("the absolute path of a folder that exists, and not /")
    return folder


def _bundle(value: str) -> Path:
    from model import connections  # imports requests and the hub's library

    try:
        connections.context(value)
    except OSError:  # ssl raises it also for a file without a certificate
        raise ValueError("a file of certificates in PEM, or a folder of them, that exists") from None
    return Path(value)


def _one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser that accepts only `choices`, in any case, and returns the choice as given here."""

    def parse(value: str) -> str:
        for choice in choices:
            if value.lower() == choice.lower():
                return choice
        raise ValueError(f"{', '.join(choices[:-1])} or {choices[-1]}")

    return parse


def _device(value: str) -> str:
    *maps, last = DEVICE_MAPS[1:]
    form = rf"auto|cpu|mps|(cuda|xpu)(:[0-9]{{1,3}})?|{'|'.join(maps)}|{last}"
    expected = f"auto, cpu, cuda, cuda:1 ..., mps, xpu, {', '.join(maps)} or {last}"
    return _match(form, value.lower(), expected)[0]


def _points(value: str) -> tuple[tuple[str, Points], ...]:
    """Parse a list of TERM=METHOD into (term, method) pairs. The term "" stands for all other terms."""
    methods: dict[str, Points] = {method: method for method in get_args(Points)}
    pairs = []
    for part in value.split(","):
        term, _, method = part.rpartition("=")
        if method.strip() not in methods:
            raise ValueError(f"{', '.join(methods)}, or TERM=METHOD for single terms, with commas")
        pairs.append((term.strip().lower(), methods[method.strip()]))
    return tuple(pairs)


def _questions(value: str) -> tuple[str, ...]:
    questions = tuple(part.strip() for part in value.split("|") if part.strip())
    if not questions:
        raise ValueError("at least one question, several with | between, or `ask`")
    return questions


def _switch(value: str) -> bool:
    if value.lower() not in ("0", "1", "false", "true"):
        raise ValueError("0 or 1")
    return value.lower() in ("1", "true")


def _leftover(value: str) -> str:
    match = _match(r"(?is)(drop|keep)|other\s*:\s*(\S.*)", value, "drop, keep or other:LABEL")
    return match[1].lower() if match[1] else f"other:{match[2]}"


def _within(kind: type[float], what: str, low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = kind(value)
        except ValueError:
            number = low - 1
        if not low <= number <= high:  # also refuses NaN
            raise ValueError(f"{what} from {low} to {high}")
        return number

    return parse


_integer = partial(_within, int, "a whole number")
_seconds = partial(_within, float, "a number of seconds")
_share = _within(float, "a number", 0, 1)


def _setting(
    name: str, default: Any, parse: Callable[[str], Any], about: str, *, secret: bool = False
) -> Any:
    return field(default=default, repr=not secret, metadata={"env": name, "parse": parse, "about": about})


class Group:
    """The base class of the groups of settings."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Return the group with the values in `env`. An empty value counts as none. Raises SettingsError."""
        values = {}
        for spec in fields(cls):  # type: ignore[arg-type]  # each group is a dataclass
            name = spec.metadata["env"]
            given = env.get(name, "").strip()
            try:
                if given:
                    values[spec.name] = spec.metadata["parse"](given)
            except ValueError as expected:
                shown = "has a value that" if not spec.repr else f"is {given!r}, which"
                raise SettingsError(f"{name} {shown} cannot be used: it must be {expected}.") from None
        return cls(**values)

    @classmethod
    def table(cls) -> list[tuple[str, str, str]]:
        """Return (variable, default as text, description) of each setting. The text of no default is ""."""
        return [
            (spec.metadata["env"], _shown(spec.default), spec.metadata["about"])
            for spec in fields(cls)  # type: ignore[arg-type]
        ]


@dataclass(frozen=True)
class ModelSettings(Group):
    """Models: which weights to load, and on which device."""

    profile: str = _setting("VLSAM_PROFILE", "builtin", str, "The pair of models to load: a profile's name.")
    vlm: str | None = _setting(
        "VLSAM_VLM", None, str, "Another VLM: a hub id, also as ID@REVISION, or a local folder."
    )
    sam: str | None = _setting(
        "VLSAM_SAM", None, str,
        "Another segmenter: a published checkpoint's name, a hub id, also as ID@REVISION, a file or folder.",
    )  # fmt: skip
    device: str = _setting(
        "VLSAM_DEVICE", "auto", _device,
        "Device of the models: auto, cpu, cuda, cuda:1 ..., mps, xpu, or balanced: a VLM over several GPUs.",
    )  # fmt: skip
    dtype: Dtype | None = _setting(
        "VLSAM_DTYPE", None, _one_of(*get_args(Dtype)),
        "Number type of the VLM: float32, bfloat16, float16 or auto. Default: the profile's.",
    )  # fmt: skip
    quantization: Quantization | None = _setting(
        "VLSAM_QUANTIZATION", None, _one_of(*get_args(Quantization)),
        "Quantization of the VLM's weights: 4bit, 8bit or none. Default: the profile's.",
    )  # fmt: skip
    max_vlm_pixels: int | None = _setting(
        "VLSAM_MAX_VLM_PIXELS", None, _integer(50_000, 100_000_000),
        "Most pixels of an image that the VLM sees, in all views together. Default: the profile's.",
    )  # fmt: skip
    model_dir: Path = _setting(
        "MODEL_DIR", FOLDER, Path, "Folder of fetched weights. `vlsam download` fills it ahead."
    )

    def select(self, profile: str | None = None) -> Profile:
        """Return `profile`, by default the setting, with the configured weights. Raises ModelLoadError."""
        return choose(
            profile or self.profile,
            vlm=self.vlm,
            sam=self.sam,
            dtype=self.dtype,
            quantization=self.quantization,
            folder=self.model_dir,
            pixels=self.max_vlm_pixels,
        )


@dataclass(frozen=True)
class DetectionSettings(Group):
    """Detection: how objects are named and located."""

    attention: str = _setting(
        "VLSAM_ATTENTION", "best", _one_of(*RECIPES), f"Recipe from attention to maps: {', '.join(RECIPES)}."
    )
    points: tuple[tuple[str, Points], ...] = _setting(
        "VLSAM_POINTS", (), _points,
        "Method from a map to points: peak, pair, maxima or kmeans. For single terms as in `pair, "
        "crowd=kmeans, key=maxima`. Default: the recipe's.",
    )  # fmt: skip
    localizer: LocalizerKind = _setting(
        "VLSAM_LOCALIZER", "attention", _one_of(*get_args(LocalizerKind)),
        "How objects are located: by attention maps, by boxes that the VLM writes (if it can), by "
        "both, or by concept: SAM 3 segments each name.",
    )  # fmt: skip
    exemplars: Exemplars = _setting(
        "VLSAM_EXEMPLARS", "missing", _one_of(*get_args(Exemplars)),
        "With VLSAM_LOCALIZER=concept: missing retries a name without results with a box around the "
        "peak of its attention map; never does not.",
    )  # fmt: skip
    views: Views = _setting(
        "VLSAM_VIEWS", "whole", _one_of(*get_args(Views)),
        "whole, or corners: also the four quarters of the image, for small objects at five times the cost.",
    )  # fmt: skip
    questions: tuple[str, ...] = _setting(
        "VLSAM_QUESTIONS", Options().questions, _questions,
        "Questions to the VLM, separated by |. With `ask` it proposes ten itself.",
    )  # fmt: skip
    listing_url: str | None = _setting(
        "VLSAM_LISTING_URL", None, _url,
        "An OpenAI-compatible endpoint whose VLM names the objects, as in `http://vllm:8000/v1`. The "
        "local VLM locates them.",
    )  # fmt: skip
    listing_model: str | None = _setting(
        "VLSAM_LISTING_MODEL", None, str, "Name of the model at VLSAM_LISTING_URL."
    )
    listing_key: str | None = _setting(
        "VLSAM_LISTING_KEY", None, str, "API key, sent to VLSAM_LISTING_URL and nowhere else.", secret=True
    )
    vocabulary: Vocabulary = _setting(
        "VLSAM_VOCABULARY", "open", _one_of(*get_args(Vocabulary)),
        "The VLM lists all objects (open), the project's labels (project), or both, at twice the time.",
    )  # fmt: skip
    presence: float = _setting(
        "VLSAM_PRESENCE", 0.0, _share,
        "Drop terms for which the VLM's yes to `is there a ...?` is less likely than this, 0 to 1. 0 "
        "does not ask.",
    )  # fmt: skip
    classifier: str | None = _setting(
        "VLSAM_CLASSIFIER", None, str, "Image classifier of the ViT kind, for VLSAM_ATTENTION=vit-rollout."
    )

    def __post_init__(self) -> None:
        if (self.listing_url is None) != (self.listing_model is None):
            raise SettingsError("VLSAM_LISTING_URL and VLSAM_LISTING_MODEL go together: set both or none.")
        if self.listing_key is not None and self.listing_url is None:
            raise SettingsError("VLSAM_LISTING_KEY is of no use without VLSAM_LISTING_URL.")
        if self.listing_url is not None and self.localizer == "boxes":
            raise SettingsError("VLSAM_LISTING_URL is of no use with VLSAM_LOCALIZER=boxes: take both.")

    @cached_property
    def options(self) -> Options:
        """The options of the models that these settings define."""
        points = dict(self.points)
        endpoint = None
        if self.listing_url is not None and self.listing_model is not None:
            from model.vlm.remote_vlm import RemoteVLM  # imports requests

            endpoint = RemoteVLM(self.listing_model, self.listing_url, self.listing_key)
        return Options(
            questions=self.questions,
            remote_vlm=endpoint,
            views=self.views,
            recipe=RECIPES[self.attention],
            points=points.pop("", None),
            term_points=tuple(points.items()),
            localizer=self.localizer,
            exemplars=self.exemplars,
            vocabulary=self.vocabulary,
            presence=self.presence,
            classifier=self.classifier,
        )


@dataclass(frozen=True)
class AnswerSettings(Group):
    """Answers: what predictions contain, and how long they may take."""

    similarity: float = _setting(
        "VLSAM_SIMILARITY", 0.0, _share,
        "Give a term without a label the label whose text embedding in the VLM is at least this "
        "similar, 0 to 1. 0 switches it off.",
    )  # fmt: skip
    leftover: str = _setting(
        "VLSAM_LEFTOVER", "drop", _leftover,
        "Objects without a label: drop them, keep them without a label, or other:LABEL.",
    )  # fmt: skip
    on_open: OnOpen = _setting(
        "VLSAM_ON_OPEN", "annotate", _one_of(*get_args(OnOpen)),
        "When a person opens a task: annotate it, or prewarm: answer with nothing at once and encode "
        "the image for the clicks to come.",
    )  # fmt: skip
    deadline: float = _setting(
        "VLSAM_DEADLINE", 90.0, _seconds(0.05, 3600),
        "Seconds until a prediction answers with what is done. Label Studio gives up after 100.",
    )  # fmt: skip
    labels_in_place: bool = _setting(
        "VLSAM_LABELS_IN_PLACE", False, _switch,
        "1: a labelled click beside a region replaces it too. This breaks Label Studio's editor if "
        "the region is selected.",
    )  # fmt: skip


@dataclass(frozen=True)
class LabelStudioSettings(Group):
    """Label Studio: its address and key."""

    url: str | None = _setting(
        "LABEL_STUDIO_URL", None, _url, "Address of Label Studio from this server. Uploads are fetched there."
    )
    api_key: str | None = _setting(
        "LABEL_STUDIO_API_KEY", None, str,
        "A personal access token or legacy token, sent to LABEL_STUDIO_URL and nowhere else.", secret=True,
    )  # fmt: skip
    hosts: tuple[str, ...] = _setting(
        "VLSAM_LABEL_STUDIO_HOSTS", (), _label_studio_hosts,
        "Other addresses of the same Label Studio, as in `https://label.example.com, example.com/ls`. "
        "Addresses of images below them are fetched from LABEL_STUDIO_URL.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.hosts and self.url is None:
            raise SettingsError("VLSAM_LABEL_STUDIO_HOSTS is of no use without LABEL_STUDIO_URL.")


@dataclass(frozen=True)
class ImageSettings(Group):
    """Images: from where they may be read, and up to which size."""

    allowed_hosts: tuple[tuple[str, int | None], ...] = _setting(
        "VLSAM_ALLOWED_HOSTS", (), _hosts,
        "Hosts with private addresses from which images may be fetched, as in `minio:9000, 10.0.0.7`.",
    )  # fmt: skip
    local_files_document_root: Path | None = _setting(
        "LOCAL_FILES_DOCUMENT_ROOT", None, _folder,
        "Folder of the files below /data/local-files/. Default: Label Studio is asked for them.",
    )  # fmt: skip
    requests_ca_bundle: Path | None = _setting(
        "REQUESTS_CA_BUNDLE", None, _bundle,
        "Certificate authorities to trust instead of the usual ones, for all https: a file or a folder.",
    )  # fmt: skip
    image_timeout: float = _setting(
        "VLSAM_IMAGE_TIMEOUT", 20.0, _seconds(0.05, 600), "Seconds to download one image, in all."
    )
    max_image_bytes: int = _setting(
        "VLSAM_MAX_IMAGE_BYTES", 100_000_000, _integer(1, 2**31 - 1), "Largest image file, in bytes."
    )
    max_image_pixels: int = _setting(
        # Pillow refuses images of more than 178 megapixels.
        "VLSAM_MAX_IMAGE_PIXELS", 80_000_000, _integer(1, 178_000_000),
        "Largest image, width times height.",
    )  # fmt: skip


@dataclass(frozen=True)
class CacheSettings(Group):
    """Cache: how many encoded images are kept, and where."""

    mb: int = _setting(
        "VLSAM_CACHE_MB", 1024, _integer(0, 10_000_000),
        "Megabytes of encoded images in memory, and on a GPU another eighth of it there. 0 keeps none.",
    )  # fmt: skip
    dir: Path | None = _setting(
        "VLSAM_CACHE_DIR", None, Path,
        "Folder for encoded images that survive a restart. `vlsam warm` fills it ahead.",
    )  # fmt: skip
    disk_mb: int = _setting(
        "VLSAM_CACHE_DISK_MB", 10_000, _integer(0, 1_000_000_000),
        "Megabytes that VLSAM_CACHE_DIR may hold. The least recently used are removed.",
    )  # fmt: skip


@dataclass(frozen=True)
class ServerSettings(Group):
    """Server: address, processes, limits and passwords."""

    port: int = _setting("PORT", 9090, _integer(1, 65535), "Port to listen on.")
    workers: int = _setting(
        "WORKERS", 1, _integer(1, 64), "Processes. Each loads the models again: use 1 per device."
    )
    threads: int = _setting("THREADS", 32, _integer(2, 512), "Requests answered at the same time.")
    queue: int = _setting(
        "VLSAM_QUEUE", 24, _integer(1, 511),
        "Predictions that may wait or run, at most THREADS - 1. One more is answered 503.",
    )  # fmt: skip
    max_body_bytes: int = _setting(
        "VLSAM_MAX_BODY_BYTES", 128_000_000, _integer(1, 2**31 - 1),
        "Largest request body, in bytes. A click carries the drafts of its task: 18 MB with 100 rough masks.",
    )  # fmt: skip
    basic_auth_user: str | None = _setting(
        "BASIC_AUTH_USER", None, str,
        "With BASIC_AUTH_PASS: user that all routes but /health and /webhook ask for.",
    )  # fmt: skip
    basic_auth_pass: str | None = _setting(
        "BASIC_AUTH_PASS", None, str, "The password of BASIC_AUTH_USER.", secret=True
    )
    webhook_secret: str | None = _setting(
        "VLSAM_WEBHOOK_SECRET", None, _secret,
        "Secret that /webhook asks for, as the last part of its address or in the header "
        "X-Webhook-Secret.", secret=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if (self.basic_auth_user is None) != (self.basic_auth_pass is None):
            raise SettingsError("BASIC_AUTH_USER and BASIC_AUTH_PASS must be set together or not at all.")

    @property
    def admitted(self) -> int:
        """The number of predictions that may wait or run. It leaves one thread free to answer /health."""
        return min(self.queue, self.threads - 1)


@dataclass(frozen=True)
class LogSettings(Group):
    """Log: its level."""

    level: str = _setting("LOG_LEVEL", "INFO", _one_of(*LEVELS), "DEBUG, INFO, WARNING or ERROR.")


@dataclass(frozen=True)
class Settings:
    """All settings of one process, in groups."""

    models: ModelSettings = field(default_factory=ModelSettings)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    answers: AnswerSettings = field(default_factory=AnswerSettings)
    label_studio: LabelStudioSettings = field(default_factory=LabelStudioSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    log: LogSettings = field(default_factory=LogSettings)

    @property
    def secrets(self) -> list[str]:
        """The values that are secret. No log or message may show them."""
        groups = [getattr(self, name) for name in self.groups()]
        values = [getattr(group, spec.name) for group in groups for spec in fields(group) if not spec.repr]
        return [value for value in values if value]

    def version(self, profile: Profile) -> str:
        """Return the version of the predictions that are made with these settings and this profile."""
        from model.versions import version_of  # imports requests and the hub's library

        answers = self.answers
        return version_of(profile, self.detection.options, answers.leftover, f"{answers.similarity:g}")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "Settings":
        """Return the settings in `env`, by default the process environment. Raises SettingsError."""
        env = os.environ if env is None else env
        return cls(**{name: group.from_env(env) for name, group in cls.groups().items()})

    @classmethod
    def groups(cls) -> dict[str, Any]:
        """Return {field name: class} of the groups."""
        return {group.name: group.default_factory for group in fields(cls)}


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " | ".join(default)
    if default is None:
        return ""
    return f"{default:g}" if isinstance(default, bool | float) else str(default)
