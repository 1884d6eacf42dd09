"""The pages for readers: strict links on the site and on the forge, paths that exist, a short README."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "pyproject.toml")
CARD = "model/builtin/MODEL_CARD.md"
PAGES = sorted(
    [*(ROOT / name for name in (*TOP, CARD) if name.endswith(".md")), *(ROOT / "docs").rglob("*.md")]
)
FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def build(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Build the site of `folder`/docs, as `make docs` does."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    command += ["-d", str(folder / "doctrees"), str(folder / "docs"), str(folder / "html")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build"))
    for name in (*TOP, CARD):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    built = build(tmp_path)
    assert (built.returncode, built.stderr) == (0, "")
    loaded = re.compile(r"<(?:script|link|img|iframe|source)[^>]*\s(?:src|href)=\"(?:https?:)?//")
    for page in (tmp_path / "html").rglob("*.html"):
        assert not loaded.search(page.read_text("utf-8")), page
    for style in (tmp_path / "html").rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text("utf-8")), style


@pytest.mark.slow
def test_each_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/conf.py", tmp_path / "docs")
    (tmp_path / "docs/other.md").write_text("# Other\n")
    links = "[a](missing.md), [b](#missing), [c](other.md#missing)"
    (tmp_path / "docs/index.md").write_text(f"# Title\n\n{links}\n\n```{{toctree}}\nother\n```\n")
    built = build(tmp_path)
    assert (built.returncode, built.stderr.count("WARNING")) == (1, 3)


def anchors(page: Path) -> set[str]:
    """The anchors that the forge gives a page's headings."""
    headings = re.findall(r"^#{1,6} (.+)$", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def dead(page: Path, text: str) -> Iterator[str]:
    """The relative links of a page that lead to no file, or to no heading."""
    for link in LINK.findall(INLINE.sub("", FENCED.sub("", text))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_on_the_forge(page: Path) -> None:
    assert list(dead(page, page.read_text("utf-8"))) == []


def test_dead_links_are_found() -> None:
    text = "[a](docs/missing.md) [b](docs/models.md#missing) [c](#profiles) [d](https://x)"
    assert list(dead(ROOT / "README.md", text)) == ["docs/missing.md", "docs/models.md#missing"]


def missing(text: str) -> list[str]:
    """The paths of this repository in a text that are not there."""
    paths = re.findall(r"(?<![\w/.])(?:backend|model|vlsam|tests|docs)/[\w./-]*\w", text)
    made = ("tests/e2e/artifacts", "docs/_build")  # by commands
    return [path for path in paths if not path.startswith(made) and not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_a_page_names_exist(page: Path) -> None:
    assert missing("\n".join(INLINE.findall(page.read_text("utf-8")))) == []


def test_missing_paths_are_found() -> None:
    assert missing("`backend/predictor.py`, `model/types.py` and `https://host/model/x`") == [
        "backend/predictor.py"
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_that_a_page_finds_in_a_file_are_there(page: Path) -> None:
    named = r"`(\w+)`(?: and `(\w+)`)?\s+in\s+`((?:backend|model|vlsam|tests)/[\w/]+\.py)`"
    for *names, path in re.findall(named, page.read_text("utf-8")):
        text = (ROOT / path).read_text("utf-8")
        assert [name for name in names if not re.search(rf"\b{name}\b", text)] == [], path


def test_the_architecture_names_every_package() -> None:
    text = (ROOT / "docs/develop/architecture.md").read_text("utf-8")
    folders = [path.parent for path in ROOT.glob("[bmv]*/**/__init__.py")]
    packages = [str(path.relative_to(ROOT)) for path in folders if len(path.relative_to(ROOT).parts) < 3]
    assert len(packages) > 20
    assert [package for package in packages if f"`{package}`" not in text] == []


DECISIONS = sorted((ROOT / "docs/decisions").glob("0*.md"))


def test_decisions_are_numbered_and_listed() -> None:
    assert [path.name[:4] for path in DECISIONS] == [f"{n:04}" for n in range(1, len(DECISIONS) + 1)]
    titles = [(path.read_text("utf-8").split("\n")[0].removeprefix("# "), path.name) for path in DECISIONS]
    index = re.findall(
        r"^- \[(\d+)\]\((.*?)\): (.*)$", (ROOT / "docs/decisions/index.md").read_text("utf-8"), re.M
    )
    assert [(f"{number} {title}", name) for number, name, title in index] == titles


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name)
def test_a_decision_says_why_and_what_was_rejected(page: Path) -> None:
    headings = re.findall(r"^## (.*)$", page.read_text("utf-8"), re.MULTILINE)
    assert headings == ["Decision", "Why", "Rejected", "Consequence"]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_that_a_page_shows_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the built-in weights: examples of other profiles are only compiled."""
    shutil.copy(ROOT / "model/builtin/samples/scene-04.jpg", tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    for block in blocks:
        code = compile(block, page, "exec")
        if "gpu-" not in block:
            exec(code, names)
    assert names["detections" if page != "README.md" else "mask"] is not None


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 9216
