"""Encode a project's images into the embedding files, so that every first click is fast: `vlsam warm`."""

import argparse
import os
import sys
from collections import Counter
from operator import methodcaller

from tqdm import tqdm

from backend.answers.failure_reason import why
from backend.images.fetch import Fetcher
from backend.images.image_cache import image_hash
from backend.labelstudio import labeling_config
from backend.labelstudio_api.client import StudioClient
from backend.runtime.embedding_cache import embedding_key
from backend.runtime.embedding_files import EmbeddingFiles
from backend.settings import Settings, SettingsError
from backend.telemetry.logs import printable
from backend.telemetry.metrics import Metrics
from model.segmentation.segmenter import Segmenter
from model.versions import segmenter_version_of
from model.weights.out_of_memory import with_less_memory


def run(args: argparse.Namespace) -> int:
    """Encode a project's images. Return 1 if any failed.

    Raises SettingsError, StudioError and ModelLoadError.
    """
    given = {"LABEL_STUDIO_URL": args.label_studio_url} if args.label_studio_url else {}
    settings = Settings.from_env({**os.environ, **given})
    if settings.cache.dir is None:
        raise SettingsError("set VLSAM_CACHE_DIR, for the server too: the folder to keep encoded images in.")
    if settings.label_studio.url is None or settings.label_studio.api_key is None:
        raise SettingsError("set LABEL_STUDIO_API_KEY, and LABEL_STUDIO_URL or --label-studio-url.")
    client = StudioClient.connect(settings.images, settings.label_studio)
    project = client.project(args.project)
    config, total = labeling_config.parse(project.get("label_config") or ""), project.get("task_number")
    tasks = client.tasks(args.project)
    profile, images = settings.models.select(args.profile), Fetcher(settings.images, settings.label_studio)
    options = settings.detection.options
    device, concepts = settings.models.device, options.localizer == "concept"
    segmenter = Segmenter.load(profile.sam, device=device, folder=profile.folder, concepts=concepts)
    bytes_left = settings.cache.disk_mb * 1e6
    disk = EmbeddingFiles(settings.cache.dir, bytes_left, Metrics())
    identity, keys, counts = segmenter_version_of(profile, options), set[str](), Counter[str]()
    for task in tqdm(tasks, "warm", total, unit="image", file=sys.stderr, disable=None):
        number = task.get("id")
        try:
            image = images.load(config.source(task.get("data")), client.server, task=number)
            key = embedding_key(identity, image_hash(image))
            cached = disk.read(key)
            embedding = cached or with_less_memory(segmenter, methodcaller("encode", image))[0]
        except Exception as error:
            counts["failed"] += 1
            reason = why(error, f"task {number}")
            tqdm.write(f"vlsam: task {number}: {printable(reason)}", file=sys.stderr)
            continue
        if key not in keys:
            keys.add(key)
            bytes_left -= embedding.nbytes
        if bytes_left < 0:  # another file would evict the first
            raise SettingsError(
                f"VLSAM_CACHE_DISK_MB={settings.cache.disk_mb} holds {len(keys) - 1} of the project's "
                f"{total} images: set more, for the server too."
            )
        if cached is None:
            try:
                disk.write(key, embedding)
            except OSError as error:
                raise SettingsError(f"VLSAM_CACHE_DIR cannot be written: {error}.") from error
        counts["encoded" if cached is None else "kept"] += 1
    print(f"{counts['encoded']} encoded, {counts['kept']} there already, {counts['failed']} failed")
    return 1 if counts["failed"] else 0
