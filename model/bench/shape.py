"""Define the size of the random model for `vlsam bench attention`."""

from dataclasses import dataclass

TAIL = 32  # text tokens that follow the image


@dataclass(frozen=True)
class Shape:
    """Size of a random Qwen2.5-VL. Its decoder is measured; its vision tower is tiny."""

    tokens: int = 1536
    layers: int = 12
    heads: int = 12
    key_heads: int = 2
    width: int = 768
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens, nearly square, with TAIL text tokens left."""
        count = self.tokens - TAIL - 2
        rows = int(count**0.5)
        return rows, count // rows
