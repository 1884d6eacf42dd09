from pathlib import Path

from backend.demo import instructions

PAGE = Path(__file__).parents[3] / "docs/label-studio/clicks.md"


def test_the_page_about_clicks_shows_the_text_that_the_demo_prints() -> None:
    assert f"\n\n{instructions.TEXT}\n" in PAGE.read_text("utf-8")
