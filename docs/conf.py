"""Sphinx: `make docs` builds the pages of this folder as HTML, without the network."""

import re
import tomllib
from pathlib import Path
from typing import Any

with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
    _package = tomllib.load(file)["project"]

project = "VL-SAM for Label Studio"
author = "the VL-SAM for Label Studio authors"
copyright = f"2026 {author}"
version = release = _package["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
templates_path: list[str] = []
# Anchors of headings are the forge's, so that a link works on both.
myst_heading_anchors = 4

# Blocks without a language are output.
highlight_language = "none"

html_theme = "furo"
html_title = project
html_show_sphinx = False

napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
# Types of other libraries: the build fetches no inventories of their documentation.
nitpick_ignore_regex = [("py:.*", r"(numpy|np|PIL|torch|collections|os|pathlib|typing|npt)(\..*)?")]

# The names of vlsam for array types, whose whole spelling would fill the signatures.
_ARRAYS = {"uint8": "vlsam.Image", "bool": "vlsam.Mask"}
_ARRAY = re.compile(
    r"~?(?:numpy\.)?ndarray\[~?tuple\[int, \.\.\.\], ~?(?:numpy\.)?dtype\[~?(?:numpy\.)?(\w+)\]\]"
)


def _shorten(
    app: Any, kind: str, name: str, documented: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Write Image, Mask or ndarray for each array type of a signature, and `...` for a default's factory."""

    def short(text: str | None) -> str | None:
        shortened = text and _ARRAY.sub(lambda array: _ARRAYS.get(array[1], "numpy.ndarray"), text)
        return shortened and shortened.replace("<factory>", "...")

    return short(signature), short(returned)


def _without_type(app: Any, kind: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading an attribute's text up to its first colon as a type."""
    if kind in ("attribute", "data", "property") and lines:
        lines[0] = f": {lines[0]}"


def setup(app: Any) -> None:
    """Register the hooks, the second one before napoleon's own."""
    app.connect("autodoc-process-signature", _shorten)
    app.connect("autodoc-process-docstring", _without_type, priority=400)
