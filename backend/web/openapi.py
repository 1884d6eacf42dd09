"""Load the OpenAPI description of all routes, which is served at /openapi.json."""

import json
from importlib.metadata import version
from importlib.resources import files
from typing import Any

DESCRIPTION: dict[str, Any] = json.loads(files(__package__).joinpath("openapi.json").read_text("utf-8"))
DESCRIPTION["info"]["version"] = version("vlsam")
