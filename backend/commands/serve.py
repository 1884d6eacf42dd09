"""Run the Label Studio ML backend until a signal ends it.

Environment variables are its settings.

examples:
  vlsam serve                                    on port 9090, with the built-in demo models
  VLSAM_PROFILE=gpu-8g vlsam serve --port 9091   with real ones
"""

import argparse

from backend.commands.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")  # noqa: S104
    parser.add_argument("--port", type=int, help="default: $PORT or 9090")


def run(args: argparse.Namespace) -> int:
    from backend._wsgi import serve
    from backend.settings import Settings

    settings = Settings.from_env()
    serve(args.host, args.port or settings.server.port, settings)
    return 0
