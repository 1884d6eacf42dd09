"""Encode and decode Label Studio's run-length encoding (RLE) of a brush: four channels for each pixel.

The bit stream begins with the number of values (32 bits), the bits of a value minus 1 (5 bits) and four sizes
minus 1 (4 bits each). Codes follow. A code has a bit for its kind, two bits that select one of the sizes, its
length minus 1 in that many bits, and its values. Kind 1 is a run: one value, which is repeated. Kind 0 is a
literal: as many values as its length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.patches import Window
from model.types import Mask

Bytes = NDArray[np.uint8]
Spend = Callable[[float], None]  # is called with the cost of each step before it is done, in units of work

VALUE_BITS = 8
HEAD_BITS = 32 + 5 + 4 * 4
WINDOW = 1 << 16  # bytes of a stream that are decoded together, and characters of a text
# Units of work, measured: of a bit of the stream, of a literal's code, of a character.
BIT, LITERAL, CHARACTER = 6, 500, 4


def encode(mask: Mask) -> list[int]:
    """Encode a mask (H, W) as the bytes of Label Studio's RLE. All channels are 255 on the mask, else 0.

    The result equals that of label_studio_sdk.converter.brush.mask2rle without its last byte of zeros. The
    library's function loops in Python and takes over 50 ms for 12 million pixels.
    """
    flat = np.ascontiguousarray(mask).reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = 4 * np.diff(starts, append=flat.size)
    pieces = -(-lengths // 2**16)  # the longest run of a code
    values = np.repeat(255 * flat[starts].astype(np.int64), pieces)
    runs = np.full(len(values), 2**16)
    runs[np.cumsum(pieces) - 1] = lengths - 2**16 * (pieces - 1)
    # A run: 1, the number of its size, length - 1 in so many bits, the value in 8. The head: the number
    # of values, the bits of a value - 1, the sizes - 1.
    sizes = np.array([3, 4, 8, 16])
    number = np.searchsorted([8, 16, 256], runs)
    size = sizes[number]
    codes = np.concatenate([[4 * flat.size, 7], sizes - 1, ((4 + number) << size | runs - 1) << 8 | values])
    widths = np.concatenate([[32, 5, 4, 4, 4, 4], size + 11])
    bits = np.unpackbits(codes.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    packed: list[int] = np.packbits(bits[np.arange(32) >= 32 - widths[:, None]]).tolist()
    return packed


def numbers(text: memoryview, spend: Spend) -> Bytes:
    """Parse the numbers in the brackets of a JSON array. Raises ValueError unless all are 0 to 255."""
    characters = np.frombuffer(text, np.uint8)
    if not len(characters) or characters[-1] == ord(","):
        raise ValueError("run lengths with gaps")
    parts = []
    at = 0
    while at < len(characters):
        spend(CHARACTER * WINDOW)
        part = characters[at : at + WINDOW]
        if at + WINDOW < len(characters):  # not in the middle of a number
            (commas,) = np.nonzero(part == ord(","))
            if not len(commas):
                raise ValueError("run lengths that are not numbers")
            part = part[: commas[-1] + 1]
        parts.append(_numbers(part))
        at += len(part)
    return np.concatenate(parts)


def _numbers(part: Bytes) -> Bytes:
    digits = part - np.uint8(ord("0"))  # smaller bytes wrap around
    is_digit = digits < 10
    comma = part == ord(",")
    # JSON has four kinds of white space.
    if not (is_digit | comma | (part == 32) | (part == 10) | (part == 13) | (part == 9)).all():
        raise ValueError("run lengths that are not whole numbers")
    digits *= is_digit
    values = digits.copy()
    values[1:] += 10 * digits[:-1]
    hundreds = digits[:-2] * is_digit[1:-1]
    too_large = (hundreds > 2) | ((hundreds == 2) & (values[2:] > 55))
    fourth = is_digit[3:] & is_digit[2:-1] & is_digit[1:-2] & is_digit[:-3]
    last = is_digit.copy()
    last[:-1] &= ~is_digit[1:]
    if fourth.any() or (too_large & is_digit[2:]).any():
        raise ValueError("run lengths above 255")
    values[2:] += 100 * hundreds
    if comma.sum() + (not comma[-1]) != last.sum():
        raise ValueError("run lengths with gaps")
    return values[last]


@dataclass(frozen=True, eq=False)
class Spans:
    """A mask as runs of consecutive pixels. Pixels are numbered row by row."""

    width: int  # of the image
    # (2 n,) ascending: each span's first pixel, and the one behind its last.
    edges: NDArray[np.int32]

    @cached_property
    def area(self) -> int:
        return int((self.edges[1::2] - self.edges[::2]).sum())

    @cached_property
    def window(self) -> Window:
        """The smallest window of all pixels, or as wide as the image if a span continues in the next row."""
        if not len(self.edges):
            return 0, 0, 0, 0
        first, last = self.edges[::2], self.edges[1::2] - 1
        top, bottom = int(first[0]) // self.width, int(last[-1]) // self.width + 1
        left, right = first % self.width, last % self.width
        if (left > right).any() or (last - first >= self.width).any():
            return 0, top, self.width, bottom
        return int(left.min()), top, int(right.max()) + 1, bottom

    def hold(self, points: NDArray[Any]) -> bool:
        """Return whether any of points (n, 2), xy pixels inside the image, is on the mask."""
        columns, rows = np.floor(points).astype(np.int64).T
        # Behind an odd number of edges it is inside a span.
        return bool((np.searchsorted(self.edges, rows * self.width + columns, side="right") % 2).any())

    def paint(self) -> Mask:
        """Return the part of the mask inside `window`, bool (h, w)."""
        left, top, right, bottom = self.window
        if not len(self.edges):
            return np.zeros((0, 0), bool)
        rows, columns = np.divmod(self.edges - np.tile([0, 1], len(self.edges) // 2), self.width)
        edges = (rows - top) * (right - left) + columns - left + np.tile([0, 1], len(self.edges) // 2)
        lengths = np.diff(edges, prepend=0, append=(right - left) * (bottom - top))
        return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(bottom - top, right - left)


def spans(stream: Bytes, shape: tuple[int, int], spend: Spend) -> Spans:
    """Decode RLE bytes to the mask of an image (height, width) = `shape`.

    The mask is the pixels whose fourth channel, alpha, is 128 or more. Values beyond the image are ignored.
    Raises ValueError if the stream ends early, or is not of 8-bit values and an image of this size.
    """
    total = 4 * shape[0] * shape[1]
    # The head contains the number of values.
    if len(stream) < 8 or int.from_bytes(stream[:4].tobytes()) != total:
        raise ValueError("run lengths of an image of another size")
    head = int.from_bytes(stream[:7].tobytes()) >> (56 - HEAD_BITS)
    if (head >> 16) & 31 != VALUE_BITS - 1:
        raise ValueError("run lengths of values that are not of 8 bits")
    sizes = np.array([((head >> shift) & 15) + 1 for shift in (12, 8, 4, 0)])
    raw = stream.tobytes() + bytes(8)  # so that the last codes can be read as whole words
    parts = []
    position, decoded = HEAD_BITS, 0
    while decoded < total:
        if position >= 8 * len(stream):
            raise ValueError("run lengths that end early")
        positions, position = _codes(raw, position, 8 * len(stream), sizes, spend)
        edges, values = _values(raw, positions, sizes, spend)
        edges += decoded
        decoded = int(edges[-1])
        # The values from a to before b hold the alphas of the pixels from a // 4 to before b // 4.
        pixels = np.minimum(edges, total) // 4
        painted = (values >= 128) & (pixels[:-1] < pixels[1:])
        parts.append(np.stack([pixels[:-1][painted], pixels[1:][painted]], axis=1).astype(np.int32).ravel())
    return Spans(shape[1], np.concatenate(parts))


def _codes(
    raw: bytes, position: int, end: int, sizes: NDArray[np.int64], spend: Spend
) -> tuple[NDArray[np.int64], int]:
    """Find the codes in the next WINDOW bytes. Return their bit positions and that of the code after them."""
    first = position >> 3
    window = np.unpackbits(np.frombuffer(raw, np.uint8, min(WINDOW, len(raw) - 8 - first) + 1, first))
    spend(BIT * len(window))
    # The length of a code that begins at a bit: the first three bits of a run determine it.
    lengths = np.concatenate([np.zeros(4, np.int64), 3 + sizes + VALUE_BITS]).astype(np.uint8)
    steps = lengths[window[:-2] << 2 | window[1:-1] << 1 | window[2:]].tobytes()
    bits = sizes.tolist()
    at, last = position - 8 * first, min(len(window) - 8, end - 8 * first)
    positions: list[int] = []
    add = positions.append
    literals = 0
    while at < last:
        add(at)
        step = steps[at]
        if not step:
            literals += 1
            start = 8 * first + at
            word = int.from_bytes(raw[start >> 3 : (start >> 3) + 4]) << (start & 7) & 0xFFFFFFFF
            size = bits[word >> 29]
            step = 3 + size + VALUE_BITS * (((word << 3 & 0xFFFFFFFF) >> (32 - size)) + 1)
        at += step
    spend(LITERAL * literals)
    if 8 * first + at > end:
        positions.pop()  # which the stream's end cuts off
        if not positions:
            raise ValueError("run lengths that end early")
        at = end - 8 * first
    return np.array(positions, np.int64) + 8 * first, 8 * first + at


def _values(
    raw: bytes, positions: NDArray[np.int64], sizes: NDArray[np.int64], spend: Spend
) -> tuple[NDArray[np.int64], Bytes]:
    """Decode the codes to n runs. Return the runs' bounds, n + 1 numbers from 0, and values, uint8 (n,)."""
    stream = np.frombuffer(raw, np.uint8)
    first = int(positions[0]) >> 3
    part = stream[first : (int(positions[-1]) >> 3) + 4].astype(np.uint32)
    words = part[:-3] << 24 | part[1:-2] << 16 | part[2:-1] << 8 | part[3:]
    word = words[(positions >> 3) - first] << (positions & 7).astype(np.uint32)
    size = sizes[(word >> 29) & 3]
    length = ((word << np.uint32(3)) >> (32 - size).astype(np.uint32)).astype(np.int64) + 1
    literal = word < 1 << 31
    place = positions + 3 + size
    if literal.any():
        count = np.where(literal, length, 1)
        spend(20 * int(count.sum()))
        before = np.cumsum(count) - count
        place = np.repeat(place - VALUE_BITS * before, count) + VALUE_BITS * np.arange(count.sum())
        length = np.repeat(np.where(literal, 1, length), count)
    high = stream[place >> 3].astype(np.uint16) << 8 | stream[(place >> 3) + 1]
    values = (high >> (8 - (place & 7)).astype(np.uint16)).astype(np.uint8)
    return np.concatenate([[0], np.cumsum(length)]), values
