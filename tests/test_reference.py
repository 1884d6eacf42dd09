"""Pages of docs/reference are generated from the code."""

import os
import subprocess
import sys

from tests.support.paths import ROOT


def test_the_generated_pages_are_current() -> None:
    command = [sys.executable, str(ROOT / "docs/generate.py"), "--check"]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
