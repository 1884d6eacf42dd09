"""Paths of this repository and of its environment."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CAPTURES = ROOT / "tests" / "captures"
