"""Run the command `vlsam`: `python -m vlsam annotate photo.jpg`."""

import sys

from vlsam._shadowing import check_package


def main() -> int:
    try:
        check_package("backend")
        check_package("model")
    except ImportError as error:
        print(f"vlsam: {error}", file=sys.stderr)
        return 2
    from backend.commands.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
