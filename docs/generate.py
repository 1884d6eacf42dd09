"""Write the pages of docs/reference from the code: settings, commands and HTTP. `--check` only compares."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.commands.cli import parser
from backend.settings import Settings
from backend.web.openapi import DESCRIPTION

REFERENCE = Path(__file__).parent / "reference"
NOTE = "Generated from {} by `make reference`: change that, not this page.\n"


def settings() -> Iterator[str]:
    yield "# Settings\n"
    yield NOTE.format("backend/settings.py")
    yield "Settings are environment variables. An empty one counts as not set.\n"
    for group in Settings.groups().values():
        title, _, about = (group.__doc__ or "").partition(": ")
        yield f"## {title}\n"
        yield f"{about[:1].upper()}{about[1:]}\n"
        yield "| variable | default | meaning |\n|---|---|---|"
        for name, default, meaning in group.table():
            yield _row(f"`{name}`", f"`{default}`" if default else "", meaning)
        yield ""


def commands() -> Iterator[str]:
    yield "# Commands\n"
    yield NOTE.format("`--help` of each command")
    for command in parser().walk():
        yield f"## {command.prog}\n"
        yield f"```text\n{command.format_help().strip()}\n```\n"


def http() -> Iterator[str]:
    yield "# HTTP\n"
    yield NOTE.format("backend/web/openapi.json, which the server sends at /openapi.json,")
    yield f"{DESCRIPTION['info']['description']}\n"
    for path, methods in DESCRIPTION["paths"].items():
        for method, route in methods.items():
            yield f"## {method.upper()} {path}\n"
            yield f"{route['summary']}\n"
            yield from _parameters(route.get("parameters", []))
            if "requestBody" in route:
                yield from _content("Request body", route["requestBody"])
            yield "| status | answer |\n|---|---|"
            for status, answer in route["responses"].items():
                yield _row(status, _resolved(answer)["description"])
            yield ""
            yield from _content("Answer", route["responses"].get("200", {}))
    for name, schema in DESCRIPTION["components"]["schemas"].items():
        yield f"## {name}\n"
        yield from _properties(schema)


def _parameters(parameters: list[dict[str, Any]]) -> Iterator[str]:
    if parameters:
        yield "| parameter | in | meaning |\n|---|---|---|"
        for each in parameters:
            yield _row(f"`{each['name']}`", each["in"], each.get("description", ""))
        yield ""


def _content(title: str, body: dict[str, Any]) -> Iterator[str]:
    schema = body.get("content", {}).get("application/json", {}).get("schema", {})
    if "properties" in schema:
        yield f"{title}:\n"
        yield from _properties(schema)


def _properties(schema: dict[str, Any]) -> Iterator[str]:
    yield "| field | type | meaning |\n|---|---|---|"
    for name, each in schema["properties"].items():
        needed = "" if name in schema.get("required", []) else "optional"
        yield _row(f"`{name}`", _type(each), ", ".join(filter(None, (needed, each.get("description", "")))))
    yield ""


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "items" in schema:
        return f"array of {_type(schema['items'])}"
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(f"`{value}`" for value in values)
    kind = schema.get("type", "any")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _resolved(answer: dict[str, Any]) -> dict[str, Any]:
    name = answer.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = DESCRIPTION["components"]["responses"][name] if name else answer
    return found


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> int:
    """Write the pages, or with --check return 1 if one is stale. Line breaks count for nothing: they depend
    on the version of Python."""
    os.environ["COLUMNS"] = "100"  # the width that argparse wraps to
    status = 0
    for name, page in (("settings", settings), ("cli", commands), ("http", http)):
        path, text = REFERENCE / f"{name}.md", "\n".join(page()).rstrip() + "\n"
        if "--check" not in sys.argv:
            path.write_text(text, "utf-8")
        elif path.read_text("utf-8").split() != text.split():
            print(f"{path} is stale: run `make reference` and commit it")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
