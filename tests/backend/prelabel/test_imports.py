import subprocess
import sys
from pathlib import Path

import backend.prelabel

WEB = ("flask", "werkzeug", "label_studio_ml", "redis", "rq")
FOLDER = Path(backend.prelabel.__file__).parent


def test_prelabel_and_ray_need_neither_flask_nor_label_studio_ml() -> None:
    modules = [f"backend.prelabel.{path.stem}" for path in FOLDER.glob("*.py") if path.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}; print(sorted(sys.modules.keys() & {set(WEB)}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
