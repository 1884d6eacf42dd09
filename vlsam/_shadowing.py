"""Refuse a module of another project that shadows one of our packages."""

from importlib.util import find_spec
from pathlib import Path


def check_package(name: str) -> None:
    """Check that `import name` finds the package beside this one.

    Python looks in the current folder first under `python -m`, `python -c` and gunicorn, and the folder of
    every Label Studio ML backend holds a `model.py`. Raises ImportError that names another module.
    """
    ours = Path(__file__).resolve().parents[1] / name
    spec = find_spec(name)
    # A folder without __init__.py is a module, too, where our package is installed as editable.
    found = None if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), None)
    if found is None:
        raise ImportError(f"The package {name!r} of vlsam is missing: expected {ours}.")
    if ours not in (Path(found).resolve(), Path(found).resolve().parent):
        raise ImportError(
            f"{found} shadows the package {name!r} of vlsam: "
            "rename it, or run from a folder without a module of that name."
        )
