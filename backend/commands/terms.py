"""List the terms that a running server found and that a project has no label for.

They are those since the server started, with the number of images. Add a term as a label, or as
predicted_values of one. BASIC_AUTH_USER and BASIC_AUTH_PASS are used if they are set.

example:
  vlsam terms --url http://localhost:9090 --project 7
"""

import argparse
import json

from backend.commands.parser import Parser, add_json


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--url", default="http://localhost:9090", help="of the server (default: %(default)s)")
    parser.add_argument(
        "--project", default="", metavar="N", help="its id in Label Studio; not needed for one"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    import requests

    from backend.settings import Settings
    from backend.telemetry.logs import printable
    from model import connections

    server = Settings.from_env().server
    user, password = server.basic_auth_user, server.basic_auth_pass
    auth = (user, password) if user is not None and password is not None else None
    url = args.url.rstrip("/") + "/terms"
    try:
        answer = connections.request("GET", url, params={"project": args.project}, auth=auth, timeout=10)
    except requests.RequestException as error:
        reason = connections.distrust(error)
        raise ValueError(
            f"{url} {reason}" if reason else f"no server answers at {url}: {str(error)[:200]}"
        ) from error
    try:
        body = answer.json()
        reason = body.get("error")
        rows = [] if reason else [(str(row["term"]), int(row["images"])) for row in body["terms"]]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{url} is not a vlsam server: it answers with {answer.status_code}") from None
    if reason:
        raise ValueError(reason)
    if args.json:
        print(json.dumps(body))
    elif rows:
        listed = (f"{printable(term)} ({n} image{'s' if n != 1 else ''})" for term, n in rows)
        print(f"found by the model, but not in your config: {', '.join(listed)}")
    else:
        print("every term that the model found has a label in your config")
    return 0
