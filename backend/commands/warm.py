"""The command `vlsam warm`: a project's images are encoded before anybody clicks on them."""

import argparse
import os
import sys
from collections import Counter
from operator import methodcaller
from pathlib import Path

import httpx
from label_studio_sdk.client import LabelStudio
from label_studio_sdk.core.api_error import ApiError
from tqdm import tqdm

from backend.answers.failure_reason import why
from backend.demo.studio import StudioError
from backend.images.content_hash import image_hash
from backend.images.load import Images
from backend.images.studio_urls import Server
from backend.labelstudio import labeling_config
from backend.runtime.embedding_cache import embedding_key
from backend.runtime.embedding_files import EmbeddingFiles
from backend.settings import Settings, SettingsError
from backend.telemetry.logs import printable
from backend.telemetry.metrics import Metrics
from model import connections
from model.segmentation.embedding import Embedding
from model.segmentation.segmenter import Segmenter
from model.versions import segmenter_version_of
from model.weights.out_of_memory import with_less

PAGE = 100  # tasks in one answer of Label Studio


def run(args: argparse.Namespace) -> int:
    """The exit status: 1 where an image failed. Raises ValueError, StudioError and ModelLoadError."""
    given = {"LABEL_STUDIO_URL": args.label_studio_url} if args.label_studio_url else {}
    settings = Settings.from_env({**os.environ, **given})
    if settings.cache.dir is None:
        raise SettingsError("set VLSAM_CACHE_DIR, for the server too: the folder to keep encoded images in.")
    if settings.label_studio.url is None or settings.label_studio.api_key is None:
        raise SettingsError("set LABEL_STUDIO_API_KEY, and LABEL_STUDIO_URL or --label-studio-url.")
    server = Server(settings.label_studio.url, settings.label_studio.api_key)
    try:
        with connections.client(httpx, timeout=60) as http:  # the SDK would leave its own open
            # Without the slash the SDK exchanges a personal access token beside a path of the address.
            studio = LabelStudio(base_url=f"{server.url}/", api_key=server.token, httpx_client=http)
            return _warm(settings, settings.cache.dir, server, studio, args)
    except ApiError as error:
        raise StudioError(
            f"Label Studio at {server.url} does not show project {args.project}: HTTP {error.status_code}."
        ) from error
    except httpx.HTTPError as error:
        why = connections.distrust(error) or f"cannot be reached: {error}"
        raise StudioError(f"Label Studio at {server.url} {why}.") from error
    except KeyboardInterrupt:
        print("vlsam: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _warm(
    settings: Settings, folder: Path, server: Server, studio: LabelStudio, args: argparse.Namespace
) -> int:
    project = studio.projects.get(args.project)
    config = labeling_config.parse(project.label_config or "")
    tasks = studio.tasks.list(project=args.project, page_size=PAGE, fields="task_only")
    profile, images = settings.models.select(args.profile), Images(settings.images, settings.label_studio)
    options = settings.detection.options
    segmenter = Segmenter.load(
        profile.sam,
        device=settings.models.device,
        folder=profile.folder,
        concepts=options.localizer == "concept",
    )
    room = settings.cache.disk_mb * 1e6
    disk = EmbeddingFiles(folder, room, Metrics())
    identity, seen, done = segmenter_version_of(profile, options), set[str](), Counter[str]()
    for task in tqdm(tasks, "warm", project.task_number, unit="image", file=sys.stderr, disable=None):
        try:
            image = images.load(config.source({"data": task.data}), server, task=task.id)
            key = embedding_key(identity, image_hash(image))
            kept = disk.read(key)
            embedding = kept or with_less(segmenter, methodcaller("encode", image))[0]
        except Exception as error:
            done["failed"] += 1
            reason = why(error, f"task {task.id}")
            tqdm.write(f"vlsam: task {task.id}: {printable(reason)}", file=sys.stderr)
            continue
        if key not in seen:
            seen.add(key)
            room -= embedding.nbytes
        if room < 0:  # one more would drive out the first
            raise SettingsError(
                f"VLSAM_CACHE_DISK_MB={settings.cache.disk_mb} holds {len(seen) - 1} of the project's "
                f"{project.task_number} images: set more, for the server too."
            )
        if kept is None:
            _write(disk, key, embedding)
        done["encoded" if kept is None else "kept"] += 1
    print(f"{done['encoded']} encoded, {done['kept']} there already, {done['failed']} failed")
    return 1 if done["failed"] else 0


def _write(disk: EmbeddingFiles, key: str, embedding: Embedding) -> None:
    try:
        disk.write(key, embedding)
    except OSError as error:
        raise SettingsError(f"VLSAM_CACHE_DIR cannot be written: {error}.") from error
