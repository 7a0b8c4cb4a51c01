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
from typing import Any

from tvm import te, tirx

from .integers import byte_of, joined, multiplied_high, saturated_int16, saturated_uint8
from .plane_taps import PIXELS, Window, padded_pixels, word_of_pixel, word_of_tap, words_of_taps
from .quantized import OTHER_SHIFT, WORD, dot4, nearest_byte, signed

CONVOLUTION, DEPTHWISE = "pock.planes_conv2d", "pock.planes_depthwise"
"""Schedule rules of the sums."""
TAPS = "taps"
"""Annotation of depthwise sums: multiply-adds of a result, without those by zeros that fill words."""
PIXELS_OF_RESULT = "pixels"
"""Annotation of the sums: pixels of a result, without those that fill a vector."""
BIASED = "biased"
"""Name of the block of sums with their bias."""


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
        words_at = words_of_taps(x, window, zero)
        attrs = {"schedule_rule": DEPTHWISE, PIXELS_OF_RESULT: math.prod(window.result), TAPS: math.prod(taps)}

        def of_row(r: tirx.Expr, n: tirx.Var, g: tirx.Var, b: tirx.Var, p: tirx.Var) -> tirx.Expr:
            words = words_at(n, g, r, b, p)
            return _added([dot4(word, weight(r, m, g * WORD + b)) for m, word in enumerate(words)])

        if window.keeps_words:
            r = te.reduce_axis((0, taps[0]), name="r")
            return te.compute(shape, lambda *at: te.sum(of_row(r, *at), axis=r), name="sums", attrs=attrs)
        rows = [tirx.const(r) for r in range(taps[0])]
        return te.compute(shape, lambda *at: _added([of_row(r, *at) for r in rows]), name="sums", attrs=attrs)
    at_tap = word_of_pixel(x) if window.is_pixel else word_of_tap(x, window, zero)
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
