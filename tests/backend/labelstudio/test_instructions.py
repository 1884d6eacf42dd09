from pathlib import Path

from backend.labelstudio import instructions

README = Path(__file__).parents[3] / "README.md"


def test_the_readme_shows_the_text_that_the_demo_prints() -> None:
    assert f"\n\n{instructions.TEXT}\n" in README.read_text("utf-8")
