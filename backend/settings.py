"""Everything that can be set from outside, as one frozen object read from environment variables."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from model.options import Exemplars, LocalizerKind, Options, Views, Vocabulary
from model.profiles import DEVICE_MAPS, FOLDER, Dtype, Profile, Quantization, choose
from model.recipes import RECIPES, Points

OnOpen = Literal["annotate", "prewarm"]


class SettingsError(ValueError):
    """A setting has a value that cannot be used. The message is one sentence and names the variable."""


def _text(value: str) -> str:
    return value


def _secret(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._~-]{8,200}", value):  # what an address and a header can hold as it is
        raise ValueError("8 to 200 letters, digits, dots, dashes, underscores and tildes")
    return value


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("an address that starts with http:// or https://, without a user")
    return value.rstrip("/")


def _hosts(value: str) -> tuple[tuple[str, int | None], ...]:
    """(host in lower case, port or None for any) pairs."""
    hosts: list[tuple[str, int | None]] = []
    for entry in value.lower().split(","):
        match = re.fullmatch(r"\s*([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?\s*", entry)
        if match is None:
            raise ValueError("names or addresses of hosts with commas between, as in `minio:9000, 10.0.0.7`")
        hosts.append((match[1].strip("[]"), int(match[2]) if match[2] else None))
    return tuple(hosts)


def _label_studio_hosts(value: str) -> tuple[str, ...]:
    """Addresses without a final slash, with or without scheme, port and path."""
    entries = tuple(entry.strip().rstrip("/") for entry in value.split(","))
    form = r"(?i)(https?://)?([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?(/[\w.~/-]*)?"
    if not all(re.fullmatch(form, entry) for entry in entries):
        raise ValueError(
            "addresses with commas between, as in `https://label.example.com, studio:8080, example.com/ls`"
        )
    return entries


def _folder(value: str) -> Path:
    folder = Path(value)
    # Of "/" every file of the machine would be part.
    if not folder.is_absolute() or not folder.is_dir() or folder.resolve() == Path(folder.anchor):
        raise ValueError("the absolute path of a folder that exists, and not /")
    return folder


def _bundle(value: str) -> Path:
    from model import connections  # with it come requests and the hub's library

    try:
        connections.context(value)
    except OSError:  # also what ssl raises for a file without a certificate
        raise ValueError("a file of certificates in PEM, or a folder of them, that exists") from None
    return Path(value)


def _level(value: str) -> str:
    if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError("DEBUG, INFO, WARNING or ERROR")
    return value.upper()


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"{', '.join(choices[:-1])} or {choices[-1]}")
        return value.lower()

    return parse


def _device(value: str) -> str:
    maps = DEVICE_MAPS[1:]
    if not re.fullmatch(rf"auto|cpu|mps|(cuda|xpu)(:[0-9]{{1,3}})?|{'|'.join(maps)}", value.lower()):
        raise ValueError(f"auto, cpu, cuda, cuda:1 ..., mps, xpu, {', '.join(maps[:-1])} or {maps[-1]}")
    return value.lower()


def _points(value: str) -> tuple[tuple[str, Points], ...]:
    """(term, method) pairs; the term "" stands for all others."""
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


def _share(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1
    if not 0 <= number <= 1:  # also refuses NaN
        raise ValueError("a number from 0 to 1")
    return number


def _switch(value: str) -> bool:
    if value.lower() not in ("0", "1", "false", "true"):
        raise ValueError("0 or 1")
    return value.lower() in ("1", "true")


def _leftover(value: str) -> str:
    policy, colon, label = (part.strip() for part in value.partition(":"))
    if colon and policy.lower() == "other" and label:
        return f"other:{label}"
    if colon or policy.lower() not in ("drop", "keep"):
        raise ValueError("drop, keep or other:LABEL")
    return policy.lower()


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return number

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = low - 1
        if not low <= number <= high:  # also refuses NaN
            raise ValueError(f"a number of seconds from {low:g} to {high:g}")
        return number

    return parse


def _setting(
    name: str, default: Any, parse: Callable[[str], Any], about: str, *, secret: bool = False
) -> Any:
    return field(default=default, repr=not secret, metadata={"env": name, "parse": parse, "about": about})


@dataclass(frozen=True)
class ModelSettings:
    """Which models are loaded, and where they run."""

    profile: str = _setting("VLSAM_PROFILE", "builtin", _text, "Which pair of models to load.")
    vlm: str | None = _setting(
        "VLSAM_VLM", None, _text, "Another VLM: a hub id, as it is or with @REVISION, or a local folder."
    )
    sam: str | None = _setting(
        "VLSAM_SAM",
        None,
        _text,
        "Another segmenter: a published checkpoint's name, a hub id (or with @REVISION), a file, a folder.",
    )
    device: str = _setting(
        "VLSAM_DEVICE",
        "auto",
        _device,
        "Where models run: auto, cpu, cuda, cuda:1 ..., or balanced for a VLM over several GPUs.",
    )
    dtype: Dtype | None = _setting(
        "VLSAM_DTYPE",
        None,
        _one_of(*get_args(Dtype)),
        "Numbers of the VLM: float32, bfloat16, float16 or auto; where not set, as the profile says.",
    )
    quantization: Quantization | None = _setting(
        "VLSAM_QUANTIZATION",
        None,
        _one_of(*get_args(Quantization)),
        "The VLM's weights in 4bit or 8bit, or none; where not set, as the profile says.",
    )
    max_vlm_pixels: int | None = _setting(
        "VLSAM_MAX_VLM_PIXELS",
        None,
        _integer(50_000, 100_000_000),
        "Most pixels of an image that the VLM is shown, in all views; where not set, as the profile says.",
    )
    model_dir: Path = _setting(
        "MODEL_DIR", FOLDER, Path, "The folder of fetched weights; `vlsam download` fills it ahead."
    )

    def select(self, profile: str | None = None) -> Profile:
        """Return the weights to load: `profile`, by default the setting, with what is set in its place.

        Raises ModelLoadError if there is no such profile.
        """
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
class DetectionSettings:
    """How objects are found, named and located."""

    attention: str = _setting(
        "VLSAM_ATTENTION",
        "best",
        _one_of(*RECIPES),
        f"How attention becomes maps: {', '.join(RECIPES)}; see model/recipes.py.",
    )
    points: tuple[tuple[str, Points], ...] = _setting(
        "VLSAM_POINTS",
        (),
        _points,
        "Points from a map: pair, maxima or kmeans; for single terms as in `pair, crowd=kmeans, key=maxima`.",
    )
    localizer: LocalizerKind = _setting(
        "VLSAM_LOCALIZER",
        "attention",
        _one_of(*get_args(LocalizerKind)),
        "Where objects are: by attention, by boxes that the VLM writes (where it can), both, or by concept: "
        "SAM 3 gets the names.",
    )
    exemplars: Exemplars = _setting(
        "VLSAM_EXEMPLARS",
        "missing",
        _one_of(*get_args(Exemplars)),
        "By concept: a name that finds nothing is tried again with a box where the VLM looked (missing), "
        "or never.",
    )
    views: Views = _setting(
        "VLSAM_VIEWS",
        "whole",
        _one_of(*get_args(Views)),
        "whole, or corners: also the four quarters of the image, for small objects at five times the cost.",
    )
    questions: tuple[str, ...] = _setting(
        "VLSAM_QUESTIONS",
        Options().questions,
        _questions,
        "What the VLM is asked, several with | between; `ask` lets it propose ten itself.",
    )
    listing_url: str | None = _setting(
        "VLSAM_LISTING_URL",
        None,
        _url,
        "An OpenAI-compatible endpoint whose VLM lists the objects, as in `http://vllm:8000/v1`; "
        "where they are, the VLM here says.",
    )
    listing_model: str | None = _setting(
        "VLSAM_LISTING_MODEL", None, _text, "The model at VLSAM_LISTING_URL, by its name there."
    )
    listing_key: str | None = _setting(
        "VLSAM_LISTING_KEY",
        None,
        _text,
        "The key of VLSAM_LISTING_URL, sent there and nowhere else.",
        secret=True,
    )
    vocabulary: Vocabulary = _setting(
        "VLSAM_VOCABULARY",
        "open",
        _one_of(*get_args(Vocabulary)),
        "What the VLM is asked for: all objects (open), the project's labels (project), or both, at twice "
        "the time.",
    )
    presence: float = _setting(
        "VLSAM_PRESENCE",
        0.0,
        _share,
        "Drop terms whose yes to `is there a ...?` is less likely than this, 0 to 1; 0 does not ask.",
    )
    classifier: str | None = _setting(
        "VLSAM_CLASSIFIER",
        None,
        _text,
        "An image classifier of the ViT kind, for VLSAM_ATTENTION=vit-rollout.",
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
        """The same for the models."""
        points = dict(self.points)
        endpoint = None
        if self.listing_url is not None and self.listing_model is not None:
            from model.vlm.remote_vlm import RemoteVLM  # with it comes requests

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
class AnswerSettings:
    """What Label Studio is answered."""

    similarity: float = _setting(
        "VLSAM_SIMILARITY",
        0.0,
        _share,
        "A name that fits no label gets the one whose embedding in the VLM is this alike, 0 to 1; 0 is off.",
    )
    leftover: str = _setting(
        "VLSAM_LEFTOVER",
        "drop",
        _leftover,
        "Objects that fit no label: drop them, keep them without a label, or other:LABEL.",
    )
    on_open: OnOpen = _setting(
        "VLSAM_ON_OPEN",
        "annotate",
        _one_of(*get_args(OnOpen)),
        "When Label Studio asks about one task, as it does when it opens it: annotate, or prewarm: answer "
        "nothing at once, and encode the image for the clicks to come.",
    )
    deadline: float = _setting(
        "VLSAM_DEADLINE",
        90.0,
        _seconds(0.05, 3600),
        "Seconds until a predict answers with what is done; Label Studio gives up after 100.",
    )
    labels_in_place: bool = _setting(
        "VLSAM_LABELS_IN_PLACE",
        False,
        _switch,
        "1: a labelled click beside a region replaces it too, which breaks the editor if it is selected.",
    )


@dataclass(frozen=True)
class LabelStudioSettings:
    """Where Label Studio is, and the key to it."""

    url: str | None = _setting(
        "LABEL_STUDIO_URL", None, _url, "Label Studio as this server reaches it; uploads are fetched there."
    )
    api_key: str | None = _setting(
        "LABEL_STUDIO_API_KEY",
        None,
        _text,
        "A personal access token or legacy token, sent to LABEL_STUDIO_URL and nowhere else.",
        secret=True,
    )
    hosts: tuple[str, ...] = _setting(
        "VLSAM_LABEL_STUDIO_HOSTS",
        (),
        _label_studio_hosts,
        "Other addresses of the same Label Studio, as in `https://label.example.com, example.com/ls`: what "
        "tasks have below them is asked at LABEL_STUDIO_URL.",
    )

    def __post_init__(self) -> None:
        if self.hosts and self.url is None:
            raise SettingsError("VLSAM_LABEL_STUDIO_HOSTS is of no use without LABEL_STUDIO_URL.")


@dataclass(frozen=True)
class ImageSettings:
    """Which images are read, and from where."""

    allowed_hosts: tuple[tuple[str, int | None], ...] = _setting(
        "VLSAM_ALLOWED_HOSTS",
        (),
        _hosts,
        "Hosts of images that may be asked although they are private, as in `minio:9000, 10.0.0.7`.",
    )
    local_files_document_root: Path | None = _setting(
        "LOCAL_FILES_DOCUMENT_ROOT",
        None,
        _folder,
        "A folder where /data/local-files/ is read; without it, Label Studio is asked for these files.",
    )
    requests_ca_bundle: Path | None = _setting(
        "REQUESTS_CA_BUNDLE",
        None,
        _bundle,
        "Certificate authorities to trust with https instead of the usual ones, whatever is asked: a file or "
        "a folder.",
    )
    image_timeout: float = _setting(
        "VLSAM_IMAGE_TIMEOUT", 20.0, _seconds(0.05, 600), "Seconds to download one image, in all."
    )
    max_image_bytes: int = _setting(
        "VLSAM_MAX_IMAGE_BYTES", 100_000_000, _integer(1, 2**31 - 1), "Largest image file that is read."
    )
    max_image_pixels: int = _setting(
        "VLSAM_MAX_IMAGE_PIXELS",
        80_000_000,
        # Pillow refuses images of twice its own limit whatever we say.
        _integer(1, 178_000_000),
        "Largest image that is decoded, width times height.",
    )


@dataclass(frozen=True)
class CacheSettings:
    """How long encoded images are kept, and where."""

    mb: int = _setting(
        "VLSAM_CACHE_MB",
        1024,
        _integer(0, 10_000_000),
        "Megabytes of encoded images kept in memory, and on a GPU an eighth of it there, too; 0 keeps none.",
    )
    dir: Path | None = _setting(
        "VLSAM_CACHE_DIR",
        None,
        Path,
        "A folder for encoded images that outlive a restart; `vlsam warm` fills it ahead.",
    )
    disk_mb: int = _setting(
        "VLSAM_CACHE_DISK_MB",
        10_000,
        _integer(0, 1_000_000_000),
        "Megabytes that VLSAM_CACHE_DIR may hold; what is longest unused is removed.",
    )


@dataclass(frozen=True)
class ServerSettings:
    """What the server listens to, and whom it answers."""

    port: int = _setting("PORT", 9090, _integer(1, 65535), "Where to listen.")
    workers: int = _setting(
        "WORKERS", 1, _integer(1, 64), "Processes; each loads the models again, so 1 per device is right."
    )
    threads: int = _setting("THREADS", 32, _integer(2, 512), "Requests answered at the same time.")
    queue: int = _setting(
        "VLSAM_QUEUE",
        24,
        _integer(1, 511),
        "Predictions that may wait or run, at most THREADS - 1; one more is answered 503.",
    )
    max_body_bytes: int = _setting(
        "VLSAM_MAX_BODY_BYTES",
        128_000_000,
        _integer(1, 2**31 - 1),
        "Largest request that is read; a click brings its task's drafts along, 18 MB with 100 rough masks.",
    )
    basic_auth_user: str | None = _setting(
        "BASIC_AUTH_USER", None, _text, "With BASIC_AUTH_PASS: who may call, except /health and /webhook."
    )
    basic_auth_pass: str | None = _setting(
        "BASIC_AUTH_PASS", None, _text, "The password of BASIC_AUTH_USER.", secret=True
    )
    webhook_secret: str | None = _setting(
        "VLSAM_WEBHOOK_SECRET",
        None,
        _secret,
        "What /webhook asks for, as its address's last part or in the header X-Webhook-Secret.",
        secret=True,
    )

    def __post_init__(self) -> None:
        if (self.basic_auth_user is None) != (self.basic_auth_pass is None):
            raise SettingsError("BASIC_AUTH_USER and BASIC_AUTH_PASS must be set together or not at all.")

    @property
    def admitted(self) -> int:
        """Predictions that may wait or run: one thread stays free, so that /health is always answered."""
        return min(self.queue, self.threads - 1)


@dataclass(frozen=True)
class LogSettings:
    """What is logged."""

    level: str = _setting("LOG_LEVEL", "INFO", _level, "DEBUG, INFO, WARNING or ERROR.")


@dataclass(frozen=True)
class Settings:
    """The settings of one process. Each consumer takes its group. An empty variable counts as not set."""

    models: ModelSettings = field(default_factory=ModelSettings)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    answers: AnswerSettings = field(default_factory=AnswerSettings)
    label_studio: LabelStudioSettings = field(default_factory=LabelStudioSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    log: LogSettings = field(default_factory=LogSettings)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values that no log or message may show."""
        groups = (getattr(self, group.name) for group in fields(self))
        held = (getattr(group, spec.name) for group in groups for spec in fields(group) if not spec.repr)
        return tuple(value for value in held if value)

    def version(self, profile: Profile) -> str:
        """Return the model version of predictions made with these settings and this profile."""
        from model.versions import version_of  # with it come requests and the hub's library

        answers = self.answers
        return version_of(profile, self.detection.options, answers.leftover, f"{answers.similarity:g}")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "Settings":
        """Parse `env`, by default the process environment. Raises SettingsError for an invalid value."""
        env = os.environ if env is None else env
        groups = {}
        for name, group in cls.groups().items():
            groups[name] = group(
                **{
                    spec.name: _parsed(spec, given)
                    for spec in fields(group)
                    if (given := env.get(spec.metadata["env"], "").strip())
                }
            )
        return cls(**groups)

    @classmethod
    def groups(cls) -> dict[str, Any]:
        """The class of each group, by its name."""
        return {group.name: group.default_factory for group in fields(cls)}

    @classmethod
    def table(cls) -> list[tuple[str, str, str]]:
        """(variable, default as text or "", description) of each setting."""
        specs = (spec for group in cls.groups().values() for spec in fields(group))
        return [(spec.metadata["env"], _shown(spec.default), spec.metadata["about"]) for spec in specs]


def _parsed(spec: Field[Any], given: str) -> Any:
    try:
        return spec.metadata["parse"](given)
    except ValueError as expected:
        name, shown = spec.metadata["env"], "has a value that" if not spec.repr else f"is {given!r}, which"
        raise SettingsError(f"{name} {shown} cannot be used: it must be {expected}.") from None


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " | ".join(default)
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(int(default))
    return f"{default:g}" if isinstance(default, float) else str(default)
