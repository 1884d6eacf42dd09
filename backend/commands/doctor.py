"""Find out why nothing happens in Label Studio.

Label Studio shows its users no error of an ML backend. This command checks the whole way from here to a
project's images and back, and says what to do at each failure. Without --fix it changes nothing.

Run it where `vlsam serve` runs, with the same environment: the key is read from LABEL_STUDIO_API_KEY, and
never from the command line. Exit status 1 if anything failed.

With --fix it offers changes in Label Studio, asks about each (y/N), and checks again: the connection of the
backend, Interactive preannotations, which predictions are shown, and the recommended labeling config for a
project that has none. Nothing else is ever changed.

  ok       as it should be
  note     works, but often explains what people report
  FAILED   with what to do about it
  skipped  not checked because of an earlier failure

examples:
  vlsam doctor --project 3                                          Label Studio at $LABEL_STUDIO_URL
  vlsam doctor --label-studio-url http://localhost:8080 --project 3
  docker compose exec vlsam vlsam doctor --project 3                in the container, whose network counts
  vlsam doctor --project 3 --fix --labels "Dog,Car"                 set what is missing, asking first
"""

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, replace

from backend.commands.parser import Parser
from backend.labelstudio import recommended_configs
from backend.settings import Settings
from backend.telemetry.logs import redacted


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--label-studio-url", metavar="URL", help="default: $LABEL_STUDIO_URL")
    parser.add_argument("--project", type=int, required=True, metavar="N", help="the number in its address")
    parser.add_argument(
        "--backend-url", metavar="URL",
        help="of `vlsam serve` (default: the one that the project has, or http://localhost:$PORT)",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", type=int, default=5, metavar="N", help="how many tasks to try (default: %(default)s)"
    )
    parser.add_argument(
        "--labels", metavar="A,B", default="", help="with --fix: of a project that has no labeling config"
    )
    parser.add_argument(
        "--for", dest="kind", choices=recommended_configs.KINDS, default="masks",
        help="with --labels: what its regions are (default: masks)",
    )  # fmt: skip
    parser.add_switches({
        "--fix": "offer what can be set, and ask about each change",
        "--yes": "with --fix: make the changes without asking",
        "--json": "print one JSON array, an item for each finding",
    })  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from backend.doctor import repairs
    from backend.doctor.checks import diagnose
    from backend.doctor.finding import FAILED, OK, Finding
    from backend.images.fetch import Fetcher
    from backend.images.studio_urls import Server
    from backend.labelstudio_api.client import StudioClient

    url = {"LABEL_STUDIO_URL": args.label_studio_url} if args.label_studio_url else {}
    settings = Settings.from_env({**os.environ, **url})
    if settings.label_studio.url is None:
        raise ValueError("give --label-studio-url or set LABEL_STUDIO_URL")
    if args.tasks < 1:
        raise ValueError("--tasks must be 1 or more")
    if not args.fix and (args.yes or args.labels):
        raise ValueError("--yes and --labels say what --fix shall do: give --fix, too")
    tags = list(recommended_configs.checked(recommended_configs.split(args.labels)))
    server = Server(settings.label_studio.url, settings.label_studio.api_key)
    client = StudioClient(server, Fetcher(settings.images, settings.label_studio))
    backend_url = args.backend_url.rstrip("/") if args.backend_url else None
    reported: list[Finding] = []

    def report(findings: Iterable[Finding]) -> list[Finding]:
        """Print each finding at once, except with --json. Return the findings with their secrets redacted."""
        shown = []
        for finding in findings:
            message, cure = (redacted(text, settings.secrets) for text in (finding.message, finding.cure))
            shown.append(replace(finding, message=message, cure=cure))
            if not args.json:
                print(shown[-1], flush=True)
        reported.extend(shown)
        return shown

    def check() -> list[Finding]:
        return report(diagnose(client, args.project, settings, backend_url, args.tasks))

    findings = check()
    if args.fix:
        default = backend_url or f"http://localhost:{settings.server.port}"
        login = repairs.login(settings.server)
        offered = repairs.changes(client, args.project, default, tags, args.kind, login)
        agreed = (lambda change: True) if args.yes else repairs.consent
        if any(f.status == OK for f in report(repairs.made(offered, agreed))):
            findings = check()
    if args.json:
        print(json.dumps([asdict(finding) for finding in reported]))
    return int(any(finding.status == FAILED for finding in findings))
