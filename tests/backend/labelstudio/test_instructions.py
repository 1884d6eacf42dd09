from pathlib import Path

from backend import instructions

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_shows_the_text_that_the_demo_prints() -> None:
    assert f"\n\n{instructions.TEXT}\n" in README.read_text("utf-8")
