"""Weights: where they come from, and the device that they run on."""

from pathlib import Path

FOLDER = Path("~/.cache/vlsam")  # of fetched weights, unless MODEL_DIR names another one
