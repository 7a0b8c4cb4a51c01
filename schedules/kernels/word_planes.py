"""Frozen layers in eight bits over planes of words: lanes are pixels, and weights are numbers.

Hexagon multiplies a vector by a number twice in a packet, and by another vector once or less. So activations are int32
[N, C / 4, pixels]: words of four neighbouring channels, little-endian, pixel after pixel, row after row, up to a whole
number of vectors (:func:`padded_pixels`). What stands behind the last pixel is any number.

Bits are those of ``schedules/kernels/quantized.py``: the same sums, and the same requantisation.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from .conv2d import output_extent
from .integers import byte_of, joined, multiplied_high, saturated_int16, saturated_uint8
from .quantized import OTHER_SHIFT, WORD, dot4, nearest_byte, signed

PIXELS = 32
"""Pixels of a vector."""
CONVOLUTION, DEPTHWISE = "pock.planes_conv2d", "pock.planes_depthwise"
"""Schedule rules of the sums."""
TAPS = "taps"
"""Annotation of depthwise sums: multiply-adds of a result, without those by zeros that fill words."""
PIXELS_OF_RESULT = "pixels"
"""Annotation of the sums: pixels of a result, without those that fill a vector."""
BORDERS, VECTORS, BIASED = "borders", "vectors", "biased"
WORDS_OF_TAPS = "words_of_taps"
"""Names of blocks: which pixels lie inside of a row; copies in whole vectors; sums with their bias; words of taps that
all rows of taps read."""
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


def planes_sums(
    x: te.Tensor,
    weight: te.Tensor,
    *,
    size: Sequence[int],
    taps: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    zero: int,
    depthwise: bool,
) -> te.Tensor:
    """Compute ``A[n, g, b, p] = sum_{r, s, i} dot(X[n, i, p at tap (r, s)], W[r, s, i, 4 g + b])``, int32.

    ``x``: int32 [N, C_in / 4, pixels], of images of ``size``, padded with the byte ``zero``. ``weight``: int32 [R, S,
    C_in / 4, C_out]; or, depthwise, [R, ceil(S / 4), C], rows of taps in words (:func:`row_taps_in_words` of
    ``relay_passes/analysis/fixed_point.py``). Results for output channel ``4 g + b`` are a plane.
    """
    height, width = (int(each) for each in size)
    window = Window(height, width, tuple(taps), tuple(strides), tuple(padding))  # type: ignore[arg-type]
    batch, groups, _ = (int(extent) for extent in x.shape)
    columns = int(weight.shape[-1])
    pixels = padded_pixels(*window.result)
    shape = (batch, columns // WORD, WORD, pixels)
    if depthwise:
        words_at = _words_of_taps(x, window, zero)
        attrs = {"schedule_rule": DEPTHWISE, PIXELS_OF_RESULT: math.prod(window.result), TAPS: math.prod(taps)}

        def of_row(r: tirx.Expr, n: tirx.Var, g: tirx.Var, b: tirx.Var, p: tirx.Var) -> tirx.Expr:
            words = words_at(n, g, r, b, p)
            return _added([dot4(word, weight(r, m, g * WORD + b)) for m, word in enumerate(words)])

        if window.keeps_words:
            r = te.reduce_axis((0, taps[0]), name="r")
            return te.compute(shape, lambda *at: te.sum(of_row(r, *at), axis=r), name="sums", attrs=attrs)
        rows = [tirx.const(r) for r in range(taps[0])]
        return te.compute(shape, lambda *at: _added([of_row(r, *at) for r in rows]), name="sums", attrs=attrs)
    at_tap = _pixel(x) if window.is_pixel else _tap(x, window, zero)
    r, s = te.reduce_axis((0, taps[0]), name="r"), te.reduce_axis((0, taps[1]), name="s")
    i = te.reduce_axis((0, groups), name="i")
    return te.compute(
        shape,
        lambda n, g, b, p: te.sum(dot4(at_tap(n, i, r, s, p), weight(r, s, i, g * WORD + b)), axis=[r, s, i]),
        name="sums",
        attrs={"schedule_rule": CONVOLUTION, PIXELS_OF_RESULT: math.prod(window.result)},
    )


def _added(terms: Sequence[tirx.Expr]) -> tirx.Expr:
    return functools.reduce(operator.add, terms)


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


def _words_of_taps(
    x: te.Tensor, window: Window, zero: int
) -> Callable[[tirx.Var, tirx.Var, tirx.Expr, tirx.Var, tirx.Expr], list[tirx.Expr]]:
    """Return the words of taps of an image, four channels, a tap's row, a channel of the four, and a result's pixel.

    Those of a high window are stored once for all rows of taps.
    """
    at_tap = _pixel(x) if window.is_pixel else _tap(x, window, zero, of_words=window.keeps_words)

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


def _pixel(x: te.Tensor) -> At:
    return lambda n, i, _r, _s, p: x(n, i, p)


def _tap(x: te.Tensor, window: Window, zero: int, *, of_words: bool = False) -> At:
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

    dealt = _dealt(x, window) if _is_dealt(window) else None
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
    copy = te.compute(shape, copied, name=VECTORS if dealt is not None or is_same else "copied")
    period = min(math.lcm(columns, PIXELS), pixels)
    shifts = last_column + back + 1

    def borders(shift: tirx.Var, p: tirx.Var) -> tirx.Expr:
        column = tirx.indexmod(p, columns) + shift - back
        return tirx.if_then_else(tirx.all(column >= 0, column < columns), tirx.const(-1), tirx.const(0))

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
    """Return whether the columns of a plane are dealt, even and odd ones, in whole vectors."""
    rows, columns = window.result
    return (
        window.strides == (2, 2)
        and (window.height, window.width) == (2 * rows, 2 * columns)
        and rows * columns % PIXELS == 0
        and (columns % PIXELS == 0 or PIXELS % columns == 0)
    )


def _dealt(x: te.Tensor, window: Window) -> te.Tensor:
    """Return the even columns of each plane, and the odd ones, row after row."""
    batch, groups, _ = (int(extent) for extent in x.shape)
    return te.compute(
        (batch, groups, 2, window.height * window.width // 2 // PIXELS, PIXELS),
        lambda n, i, c, block, lane: x(n, i, block * (2 * PIXELS) + lane * 2 + c),
        name=VECTORS,
    )


def planes_layer(
    x: te.Tensor, weight: te.Tensor, bias: te.Tensor, before: te.Tensor, factor: te.Tensor, *, zero_of_result: int,
    **options: Any,
) -> te.Tensor:  # fmt: skip
    """Compute the sums of :func:`planes_sums`, and requantise them as :func:`requantize` does: int32 [N, C_out / 4,
    pixels]."""
    sums = _with_bias(planes_sums(x, weight, **options), bias)

    def byte(n: tirx.Var, g: tirx.Var, b: int, p: tirx.Var) -> tirx.Expr:
        rescaled = _rescaled(sums(n, g, b, p), g * WORD + b, before, factor)
        return saturated_uint8(rescaled + tirx.const(zero_of_result, "int16"))

    return _words(sums, byte)


def planes_layer_sum(
    x: te.Tensor, weight: te.Tensor, bias: te.Tensor, before: te.Tensor, factor: te.Tensor, other: te.Tensor, *,
    other_factor: int, constant: int, bits: int, **options: Any,
) -> te.Tensor:  # fmt: skip
    """Compute the sums of :func:`planes_sums`, and requantise them with a residual ``other``, planes like the result,
    as :func:`requantize_sum` does."""
    sums = _with_bias(planes_sums(x, weight, **options), bias)

    def byte(n: tirx.Var, g: tirx.Var, b: int, p: tirx.Var) -> tirx.Expr:
        wide = byte_of(other(n, g, p), b) << tirx.const(OTHER_SHIFT, "int16")
        summand = multiplied_high(wide, tirx.const(other_factor, "int16"))
        own = _rescaled(sums(n, g, b, p), g * WORD + b, before, factor)
        return saturated_uint8((own + summand + tirx.const(constant, "int16")) >> tirx.const(bits, "int16"))

    return _words(sums, byte)


def _with_bias(sums: te.Tensor, bias: te.Tensor) -> te.Tensor:
    return te.compute(sums.shape, lambda n, g, b, p: sums(n, g, b, p) + bias(g * WORD + b), name=BIASED)


def _rescaled(total: tirx.Expr, channel: tirx.Expr, before: te.Tensor, factor: te.Tensor) -> tirx.Expr:
    return multiplied_high(saturated_int16(total >> before(channel)), factor(channel))


def _words(sums: te.Tensor, byte: Callable[[tirx.Var, tirx.Var, int, tirx.Var], tirx.Expr]) -> te.Tensor:
    batch, groups, _, pixels = (int(extent) for extent in sums.shape)
    return te.compute(
        (batch, groups, pixels), lambda n, g, p: joined(*(byte(n, g, b, p) for b in range(WORD))), name="words"
    )


def quantize_planes(x: te.Tensor, *, inverse: float, zero: int) -> te.Tensor:
    """Quantise float32 [N, H, W, C] as :func:`quantize` does, to planes of words. Missing channels hold ``zero``."""
    batch, height, width, channels = (int(extent) for extent in x.shape)

    def word(n: tirx.Var, g: tirx.Var, p: tirx.Var) -> tirx.Expr:
        found: tirx.Expr = tirx.const(0, "int32")
        for b in range(WORD):
            channel, missing = g * WORD + b, tirx.const(signed(zero << (8 * b)), "int32")
            if channels < WORD and b >= channels:
                found = found | missing
                continue
            byte = nearest_byte(_at(x, n, p, tirx.min(channel, channels - 1)), inverse, zero) << (8 * b)
            is_whole = channels % WORD == 0 or channels < WORD
            found = found | (byte if is_whole else tirx.if_then_else(channel < channels, byte, missing))
        return found

    shape = (batch, -(-channels // WORD), padded_pixels(height, width))
    return te.compute(shape, word, name="quantized")


def planes_of_bytes(q: te.Tensor) -> te.Tensor:
    """Bring uint8 [N, H, W, C], C a multiple of four, to planes of words."""
    batch, height, width, channels = (int(extent) for extent in q.shape)
    return te.compute(
        (batch, channels // WORD, padded_pixels(height, width)),
        lambda n, g, p: joined(*(_at(q, n, p, g * WORD + b) for b in range(WORD))),
        name="words",
    )


def _at(x: te.Tensor, n: tirx.Var, p: tirx.Var, channel: tirx.Expr) -> tirx.Expr:
    """Return a channel of a pixel; of the last one behind it."""
    _, height, width, _ = (int(extent) for extent in x.shape)
    if height * width % PIXELS:
        p = tirx.min(p, height * width - 1)
    return x(n, tirx.indexdiv(p, width), tirx.indexmod(p, width), channel)


def bytes_of_planes(words: te.Tensor, *, size: Sequence[int]) -> te.Tensor:
    """Bring planes of words of images of ``size`` to uint8 [N, H, W, C]."""
    return te.compute(
        _image(words, size), lambda n, h, w, c: _byte(words, size, n, h, w, c).astype("uint8"), name="bytes"
    )


def dequantize_planes(words: te.Tensor, *, size: Sequence[int], scale: float, zero: int) -> te.Tensor:
    """Compute ``scale * (q - zero)``, float32 [N, H, W, C], of planes of words of images of ``size``."""
    return te.compute(
        _image(words, size),
        lambda n, h, w, c: (_byte(words, size, n, h, w, c) - zero).astype("float32") * tirx.const(scale, "float32"),
        name="dequantized",
    )


def _image(words: te.Tensor, size: Sequence[int]) -> tuple[int, ...]:
    batch, groups, _ = (int(extent) for extent in words.shape)
    return (batch, *(int(each) for each in size), groups * WORD)


def _byte(words: te.Tensor, size: Sequence[int], n: tirx.Var, h: tirx.Var, w: tirx.Var, c: tirx.Var) -> tirx.Expr:
    word = words(n, tirx.indexdiv(c, WORD), h * int(size[1]) + w)
    return (word >> (tirx.indexmod(c, WORD) * 8).astype("int32")) & 0xFF


def dequantize_plane_sums(sums: te.Tensor, bias: te.Tensor, scale: te.Tensor, *, size: Sequence[int]) -> te.Tensor:
    """Compute ``(A + bias) * scale``, float32 [N, H, W, C_out], of the sums of images of ``size``.

    ``bias``: int32 [C_out]. ``scale``: float32 [C_out]. Sums of further channels are not read.
    """
    batch, height, width = int(sums.shape[0]), *(int(each) for each in size)

    def value(n: tirx.Var, h: tirx.Var, w: tirx.Var, c: tirx.Var) -> tirx.Expr:
        total = sums(n, tirx.indexdiv(c, WORD), tirx.indexmod(c, WORD), h * width + w)
        return (total + bias(c)).astype("float32") * scale(c)

    return te.compute((batch, height, width, int(bias.shape[0])), value, name="dequantized")
