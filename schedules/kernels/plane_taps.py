"""Taps of convolutions over planes of words: vectors of pixels, as taps read them, of copies of the planes.

See ``schedules/kernels/word_planes.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from .conv2d import output_extent
from .integers import byte_of, joined
from .quantized import WORD, signed

PIXELS = 32
"""Pixels of a vector."""
BORDERS, VECTORS, ROWS = "borders", "vectors", "rows"
WORDS_OF_TAPS = "words_of_taps"
"""Names of blocks: which pixels lie inside of a row; copies in whole vectors, and of rows that fill none; words of taps
that all rows of taps read."""
MOST_VECTORS_OF_ROWS = 128
"""Vectors of a plane's copy whose rows end anywhere, up to which code for each of them is written."""
MANY_ROWS = 5
"""Rows of taps that read the same phase of the strides, from which their words are stored: fewer cost more so."""


def padded_pixels(height: int, width: int) -> int:
    """Return the pixels that a plane holds: whole vectors."""
    return -(-height * width // PIXELS) * PIXELS


@dataclass(frozen=True)
class Window:
    """Taps of a convolution over planes, without dilation."""

    height: int
    """Rows of the input."""
    width: int
    taps: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    """Top, left, bottom, right."""

    @property
    def result(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        top, left, bottom, right = self.padding
        return (
            output_extent(self.height, self.taps[0], self.strides[0], top + bottom, 1),
            output_extent(self.width, self.taps[1], self.strides[1], left + right, 1),
        )

    @property
    def is_pixel(self) -> bool:
        """Whether each result reads the one pixel at its own place."""
        return self.taps == (1, 1) and self.strides == (1, 1) and not any(self.padding)

    @property
    def rows_above(self) -> int:
        """Rows that the first tap's phase of the strides begins above it."""
        return -self.padding[0] % self.strides[0]

    @property
    def pixels_of_rows(self) -> int:
        """Pixels, in whole vectors, of one phase of the strides that all rows of taps read."""
        last = (self.taps[0] - 1 + self.rows_above) // self.strides[0]
        return -(-(padded_pixels(*self.result) + last * self.result[1]) // PIXELS) * PIXELS

    @property
    def keeps_words(self) -> bool:
        """Whether a depthwise convolution stores words of taps, since many rows read them."""
        return -(-self.taps[0] // self.strides[0]) >= MANY_ROWS

    @property
    def fits(self) -> bool:
        """Whether rows of results hold the columns of the input that each phase of the stride reads."""
        return -(-self.width // self.strides[1]) <= self.result[1]


def place_of_tap(count: int, tap: int, byte: Any) -> Any:
    """Return the place of a tap in a word of up to four, of the channel that is a ``byte`` of its pixels' words.

    Fewer than four take no more shuffles than there are bytes to bring together.
    """
    if count == 1:
        return byte
    if count == 2:
        return byte // 2 * 2 + tap
    return 2 + byte % 2 if (count, tap) == (3, 2) else tap


def _taps(pixels: Sequence[tirx.Expr], byte: tirx.Expr | int) -> tirx.Expr:
    """Return a word of one channel's bytes of up to four pixels, at their places (:func:`place_of_tap`); those of other
    channels lie at the others."""
    if len(pixels) == 1:
        return pixels[0]
    byte = tirx.const(byte, "int32") if isinstance(byte, int) else byte
    odd, upper = tirx.indexmod(byte, 2), tirx.indexdiv(byte, 2) * 2
    if len(pixels) == 2:
        found = [(each, place) for place in (odd, odd + 2) for each in pixels]
    elif len(pixels) == 3:
        found = [(pixels[0], byte), (pixels[1], byte), (pixels[2], upper), (pixels[2], upper + 1)]
    else:
        found = [(each, byte) for each in pixels]
    return joined(*(byte_of(word, place).astype("uint8") for word, place in found))


def words_of_taps(
    x: te.Tensor, window: Window, zero: int
) -> Callable[[tirx.Var, tirx.Var, tirx.Expr, tirx.Var, tirx.Expr], list[tirx.Expr]]:
    """Return the words of taps of an image, four channels, a tap's row, a channel of the four, and a result's pixel.

    Those of a high window are stored once for all rows of taps.
    """
    at_tap = word_of_pixel(x) if window.is_pixel else word_of_tap(x, window, zero, of_words=window.keeps_words)

    def joined_at(n: tirx.Var, g: tirx.Var, r: tirx.Expr, b: tirx.Var, p: tirx.Expr) -> list[tirx.Expr]:
        row = [at_tap(n, g, r, tirx.const(s), p) for s in range(window.taps[1])]
        return [_taps(row[first : first + WORD], b) for first in range(0, window.taps[1], WORD)]

    if not window.keeps_words:
        return joined_at
    batch, groups, _ = (int(extent) for extent in x.shape)
    down, high, across = window.rows_above, window.strides[0], window.taps[1]
    counts = [min(across - first, WORD) for first in range(0, across, WORD)]
    # Words of one tap are the same for all four channels, those of two for every other one.
    kinds = [count if count < 3 else WORD for count in counts]

    def stored(word: int) -> te.Tensor:
        def at(n: tirx.Var, g: tirx.Var, a: tirx.Var, b: tirx.Var, block: tirx.Var, lane: tirx.Var) -> tirx.Expr:
            return joined_at(n, g, a - down, b, block * PIXELS + lane)[word]

        shape = (batch, groups, high, kinds[word], window.pixels_of_rows // PIXELS, PIXELS)
        return te.compute(shape, at, name=WORDS_OF_TAPS)

    kept = [stored(word) for word in range(len(kinds))]

    def kept_at(n: tirx.Var, g: tirx.Var, r: tirx.Expr, b: tirx.Var, p: tirx.Expr) -> list[tirx.Expr]:
        place = p + tirx.indexdiv(r + down, high) * window.result[1]
        at = tirx.indexdiv(place, PIXELS), tirx.indexmod(place, PIXELS)
        phase = tirx.indexmod(r + down, high)
        return [each(n, g, phase, tirx.indexmod(b, kind), *at) for each, kind in zip(kept, kinds, strict=True)]

    return kept_at


At = Callable[[tirx.Expr, tirx.Expr, tirx.Expr, tirx.Expr, tirx.Expr], tirx.Expr]
"""Word of an image, a plane, a tap's row and column, and a result's pixel."""


def word_of_pixel(x: te.Tensor) -> At:
    """Return the words that the one tap of a result's own pixel reads."""
    return lambda n, i, _r, _s, p: x(n, i, p)


def word_of_tap(x: te.Tensor, window: Window, zero: int, *, of_words: bool = False) -> At:
    """Return the words that taps read; ``of_words``: that the first row of taps reads for all that are stored.

    A plane is copied once for each phase of the strides, in rows as long as the result's: a tap then reads words one
    behind the other, at any address. Those that belong to a neighbouring row are replaced by zeros.
    """
    batch, groups, _ = (int(extent) for extent in x.shape)
    (high, wide), (rows, columns) = window.strides, window.result
    up, back = -(-window.padding[0] // high), -(-window.padding[1] // wide)
    down, right = up * high - window.padding[0], back * wide - window.padding[1]
    last_row, last_column = (window.taps[0] - 1 + down) // high - up, (window.taps[1] - 1 + right) // wide - back
    lead = -(-(up * columns + back) // PIXELS) * PIXELS
    pixels, lowest = (window.pixels_of_rows, -up) if of_words else (padded_pixels(rows, columns), last_row)
    length = -(-(lead + pixels + lowest * columns + last_column) // PIXELS) * PIXELS
    outside = tirx.const(signed(zero * 0x01010101), "int32")

    is_whole, is_dealt = _is_dealt_whole(window), _is_dealt(window) and length // PIXELS <= MOST_VECTORS_OF_ROWS
    dealt = _dealt(x, window, is_whole) if is_whole or is_dealt else None
    is_same = window.strides == (1, 1) and columns == window.width

    def copied(n: tirx.Var, i: tirx.Var, a: tirx.Var, c: tirx.Var, block: tirx.Var, lane: tirx.Var) -> tirx.Expr:
        q = (block - lead // PIXELS) * PIXELS + lane
        if is_same:
            count, first = window.height * window.width, lead // PIXELS
            word = x(n, i, q)
            if count % PIXELS:
                word = tirx.Select(q < count, word, outside)
            inside = tirx.all(block >= first, block < first - -count // PIXELS)
            return tirx.if_then_else(inside, word, outside)
        if dealt is not None and not is_whole:
            # The phase that begins one row later has fewer rows if their number is odd. Behind the last, words go on.
            count = tirx.indexdiv(window.height - a + 1, 2)
            flat = q + (tirx.min(tirx.indexdiv(q, columns), count - 1) + a) * columns
            word = dealt(n, i, c, tirx.indexdiv(flat, PIXELS), tirx.indexmod(flat, PIXELS))
            inside = tirx.all(block >= lead // PIXELS, (block - lead // PIXELS) * PIXELS < count * columns)
            return tirx.if_then_else(inside, tirx.Select(q < count * columns, word, outside), outside)
        if dealt is not None:
            # Rows of one phase lie apart by two rows.
            whole, vector = max(columns, PIXELS), block - lead // PIXELS
            part, rest = tirx.indexdiv(vector, whole // PIXELS), tirx.indexmod(vector, whole // PIXELS) * PIXELS + lane
            flat = part * (2 * whole) + a * columns + rest + tirx.indexdiv(lane, columns) * columns
            inside = tirx.all(block >= lead // PIXELS, block < (lead + rows * columns) // PIXELS)
            return tirx.if_then_else(
                inside, dealt(n, i, c, tirx.indexdiv(flat, PIXELS), tirx.indexmod(flat, PIXELS)), outside
            )
        row, column = tirx.indexdiv(q, columns) * high + a, tirx.indexmod(q, columns) * wide + c
        inside = tirx.all(block >= lead // PIXELS, row < window.height, column < window.width)
        return tirx.if_then_else(inside, x(n, i, row * window.width + column), outside)

    # Whole vectors, so that TVM keeps them: it drops what no tap reads.
    shape = (batch, groups, high, wide, length // PIXELS, PIXELS)
    name = VECTORS if is_whole or is_same else ROWS if dealt is not None else "copied"
    copy = te.compute(shape, copied, name=name)
    period = min(math.lcm(columns, PIXELS), pixels)
    shifts = last_column + back + 1

    def borders(shift: tirx.Var, p: tirx.Var) -> tirx.Expr:
        column = tirx.indexmod(p, columns) + shift - back
        return tirx.Select(tirx.all(column >= 0, column < columns), tirx.const(-1), tirx.const(0))

    border = te.compute((shifts, period), borders, name=BORDERS) if shifts > 1 or back else None

    def at(n: tirx.Expr, i: tirx.Expr, r: tirx.Expr, s: tirx.Expr, p: tirx.Expr) -> tirx.Expr:
        r, s = r + down, s + right
        shift = tirx.indexdiv(s, wide)
        place = p + lead + (tirx.indexdiv(r, high) - up) * columns + shift - back
        vector, lane = tirx.indexdiv(place, PIXELS), tirx.indexmod(place, PIXELS)
        word = copy(n, i, tirx.indexmod(r, high), tirx.indexmod(s, wide), vector, lane)
        is_own = isinstance(shift, tirx.IntImm) and int(shift) == back
        if border is None or is_own:
            return word
        # TVM knows a vector by its whole blocks.
        block = tirx.indexmod(tirx.indexdiv(p, PIXELS), period // PIXELS)
        inside = border(shift, block * PIXELS + tirx.indexmod(p, PIXELS))
        return tirx.Select(inside != 0, word, outside) if zero else word & inside

    return at


def _is_dealt(window: Window) -> bool:
    """Return whether the columns of a plane are dealt, even and odd ones, to rows as long as the result's."""
    return window.strides == (2, 2) and window.width == 2 * window.result[1]


def _is_dealt_whole(window: Window) -> bool:
    """Return whether dealt rows, of which there are twice the result's, are parts of vectors, or whole ones."""
    rows, columns = window.result
    is_part = columns % PIXELS == 0 or PIXELS % columns == 0
    return _is_dealt(window) and window.height == 2 * rows and rows * columns % PIXELS == 0 and is_part


def _dealt(x: te.Tensor, window: Window, is_whole: bool) -> te.Tensor:
    """Return the even columns of each plane, and the odd ones, row after row; with a vector behind them if they are not
    whole vectors."""
    batch, groups, _ = (int(extent) for extent in x.shape)
    vectors = padded_pixels(window.height, window.width) // PIXELS

    def at(n: tirx.Var, i: tirx.Var, c: tirx.Var, block: tirx.Var, lane: tirx.Var) -> tirx.Expr:
        if is_whole:
            return x(n, i, block * (2 * PIXELS) + lane * 2 + c)
        half = PIXELS // 2
        vector = tirx.min(block * 2 + tirx.indexdiv(lane, half), vectors - 1)
        return x(n, i, vector * PIXELS + tirx.indexmod(lane, half) * 2 + c)

    return te.compute((batch, groups, 2, vectors // 2 if is_whole else -(-vectors // 2) + 1, PIXELS), at, name=VECTORS)
