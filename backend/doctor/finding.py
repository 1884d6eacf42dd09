"""Define the finding of a check of `vlsam doctor`, and format it."""

from dataclasses import dataclass

OK, NOTE, FAILED, SKIPPED = "ok", "note", "failed", "skipped"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: str  # OK, NOTE, FAILED or SKIPPED
    message: str
    cure: str = ""

    def __str__(self) -> str:
        mark = self.status.upper() if self.status == FAILED else self.status
        cure = f"\n{'':9}{'':12}-> {one_line(self.cure)}" if self.cure else ""
        return f"{mark:9}{self.check:12}{one_line(self.message)}{cure}"


def one_line(text: str) -> str:
    """Replace unprintable characters by spaces, and shorten the text to 400 characters."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= 400 else f"{shown[:397]}..."
