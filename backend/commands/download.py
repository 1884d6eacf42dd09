"""Fetch a profile's weights ahead, so that loading the models fetches nothing.

Every file is compared with its published checksum. An interrupted download continues where it stopped.
VLSAM_VLM and VLSAM_SAM replace the profile's own weights. Files and folders of this machine stay as they are.

Everything is kept as plain files in $MODEL_DIR (default: ~/.cache/vlsam), and may be copied there by hand:
  $MODEL_DIR/sam_vit_b_01ec64.pth                SAM checkpoints
  $MODEL_DIR/Qwen/Qwen2.5-VL-3B-Instruct/        models of the hub, each under its id

A model of the hub stays at one revision, which is part of the model version. A profile names the commits of
its models; any other model stays at the revision that was fetched first. VLSAM_VLM=OWNER/NAME@REVISION (or
VLSAM_SAM) chooses one: a commit, a tag, or main for the newest.

examples:
  vlsam download                                 for $VLSAM_PROFILE
  vlsam download --profile gpu-24g               for another profile
  HF_TOKEN=... vlsam download                    a VLM whose licence you have accepted on the hub
"""

import argparse
from functools import partial
from pathlib import Path

from backend.commands.parser import Parser, add_profile


def add_arguments(parser: Parser) -> None:
    add_profile(parser)


def run(args: argparse.Namespace) -> int:
    from backend.settings import Settings
    from model.attention.token_grids import check_config
    from model.segmentation import sam_families
    from model.types import ModelLoadError
    from model.weights import hub
    from model.weights.names import fetch_sam, is_local, is_remote_sam

    settings = Settings.from_env()
    profile = settings.models.select(args.profile)
    concepts = settings.detection.localizer == "concept"
    check_sam = partial(sam_families.check, name=profile.sam, concepts=concepts)
    for name, remote, fetch, check in (
        (profile.vlm, not is_local(profile.vlm), hub.fetch, check_config),
        (profile.sam, is_remote_sam(profile.sam), fetch_sam, check_sam),
    ):
        if remote:
            path = fetch(name, profile.folder, check)
            commit = "" if path.is_file() else f"revision {hub.revision(name, profile.folder)}, "
            print(f"{name.partition('@')[0]}: {commit}complete, checksums agree, in {path}")
        elif Path(name).expanduser().exists():
            print(f"{name}: on this machine, nothing to fetch")
        else:
            raise ModelLoadError(f"{name} does not exist, and is not the name of downloadable weights")
    return 0
