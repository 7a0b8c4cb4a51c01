"""Products of frozen layers in eight bits, and their requantisation, in integers of 32 bits.

Activations: uint8, ``q``, for the number ``scale * (q - zero)``. Weights: int8 in [-127, 127], one scale an output
channel. Sums: int32. All arithmetic of sums is exact, so every target computes the same bits.

Four neighbouring channels are one word of 32 bits, little-endian, in activations as they lie in memory, and in the
weights of dense products, which are packed so: int32 [.., C_in / 4, C_out]. A word is what the dot instructions of all
processors multiply.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm_ffi
from tvm import ir, te, tirx

from .conv2d import output_extent
from .integers import joined, multiplied_high, operator, saturated_int16, saturated_uint8
from .matmul import MATMUL
from .reduction import CHANNEL_SUM

DOT = "pock.dot4"
"""Operator of TIR: the dot product of a word of four uint8 and a word of four int8, int32."""
WORD = 4
"""Bytes of a word."""
LARGEST = 255
"""Largest uint8."""


operator(DOT, "dot product of four uint8 and four int8, each four one word of 32 bits", 2)


def dot4(x: tirx.Expr, weights: tirx.Expr) -> tirx.Expr:
    """Return the dot product of two words: four uint8 of ``x``, four int8 of ``weights``."""
    return tirx.call_intrin("int32", DOT, x, weights)


def count_dots(stmt: tirx.Stmt) -> int:
    """Return how many dot products of words a statement names."""
    called: list[str] = []
    tvm_ffi.structural_walk(stmt, (ir.Call, lambda call: called.append(getattr(call.op, "name", ""))))
    return called.count(DOT)


def has_dots(stmt: tirx.Stmt) -> bool:
    """Return whether a statement computes dot products of words."""
    return count_dots(stmt) > 0


def quantized_conv2d(
    x: te.Tensor,
    weight: te.Tensor,
    *,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    zero: int,
) -> te.Tensor:
    """Compute ``A[n, h, w, o] = sum_{r, s, i} X[n, h * stride + r * dilation - pad, …, i] * W[r, s, i, o]``, int32.

    ``x``: uint8 [N, H, W, C], padded with ``zero``, C a multiple of four; or words of them, int32 [N, H, W, C / 4].
    ``weight``: int32 [R, S, C / 4, C_out], words of four input channels; or int8 [R, S, 1, C], depthwise.
    """
    batch, height, width, _ = (int(extent) for extent in x.shape)
    kernel_h, kernel_w, words, columns = (int(extent) for extent in weight.shape)
    padded = _padded(x, padding, zero)
    rows = output_extent(height, kernel_h, strides[0], padding[0] + padding[2], dilation[0])
    across = output_extent(width, kernel_w, strides[1], padding[1] + padding[3], dilation[1])
    r, s = te.reduce_axis((0, kernel_h), name="r"), te.reduce_axis((0, kernel_w), name="s")

    def at(h: tirx.Expr, w: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        return h * strides[0] + r * dilation[0], w * strides[1] + s * dilation[1]

    if str(weight.dtype) == "int8":
        return te.compute(
            (batch, rows, across, columns),
            lambda n, h, w, o: te.sum(
                padded(n, *at(h, w), o).astype("int32") * weight(r, s, 0, o).astype("int32"), axis=[r, s]
            ),
            name="quantized_depthwise",
            attrs={"schedule_rule": "pock.depthwise_conv2d"},
        )
    i = te.reduce_axis((0, words), name="i")
    return te.compute(
        (batch, rows, across, columns),
        lambda n, h, w, o: te.sum(dot4(_word(padded, [n, *at(h, w)], i), weight(r, s, i, o)), axis=[r, s, i]),
        name="quantized_conv2d",
        attrs={"schedule_rule": "pock.conv2d"},
    )


def quantized_depthwise(
    x: te.Tensor, weight: te.Tensor, *, strides: Sequence[int], padding: Sequence[int], taps: int, zero: int
) -> te.Tensor:
    """Compute ``A[n, h, w, c] = sum_{r, s} X[n, h * stride + r - pad, …, c] * W[r, s, c]``, int32, by words of taps.

    ``x``: uint8 [N, H, W, C], padded with ``zero``. ``weight``: int32 [R, phases, words, C], rows of ``taps``
    (:func:`taps_in_words`). With two phases, results at even and at odd columns read the same words of X, of which
    those at odd columns begin with another tap.
    """
    batch, height, width, channels = (int(extent) for extent in x.shape)
    kernel_h, phases, words, _ = (int(extent) for extent in weight.shape)
    top, left, bottom, right = padding
    rows = output_extent(height, kernel_h, strides[0], top + bottom, 1)
    across = output_extent(width, taps, strides[1], left + right, 1)
    step = phases * strides[1]  # columns from a word to the next
    count = (across - 1) // phases + WORD // step * (words - 1) + 1
    right = max(right, (count - 1) * step + WORD - left - width)
    padded = _padded(x, (top, left, bottom, right), zero)
    joined_words = te.compute(
        (batch, (rows - 1) * strides[0] + kernel_h, count, channels),
        lambda n, h, j, c: joined(*(padded(n, h, j * step + byte, c) for byte in range(WORD))),
        name="words",
    )
    r, m = te.reduce_axis((0, kernel_h), name="r"), te.reduce_axis((0, words), name="m")

    def term(n: tirx.Expr, h: tirx.Expr, w: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        word = joined_words(n, h * strides[0] + r, tirx.indexdiv(w, phases) + m * (WORD // step), c)
        return dot4(word, weight(r, tirx.indexmod(w, phases), m, c))

    return te.compute(
        (batch, rows, across, channels),
        lambda *at: te.sum(term(*at), axis=[r, m]),
        name="quantized_depthwise",
        attrs={"schedule_rule": "pock.quantized_depthwise"},
    )


def taps_in_words(taps: int, stride: int, columns: int) -> tuple[int, int] | None:
    """Return the phases of results, and the words of a row of taps, for :func:`quantized_depthwise`; None if words do
    not begin where the results of that stride do."""
    phases = 2 if stride == 1 and columns % 2 == 0 else 1
    if WORD % (phases * stride):
        return None
    return phases, -(-(taps + (phases - 1) * stride) // WORD)


def quantized_matmul(x: te.Tensor, weight: te.Tensor) -> te.Tensor:
    """Compute ``A[.., i, j] = sum_k X[.., i, k] * W[k, j]``, int32.

    ``x``: uint8 [.., m, K], K a multiple of four. ``weight``: int32 [K / 4, n], words of four rows.
    """
    *batch, rows, _ = (int(extent) for extent in x.shape)
    words, columns = (int(extent) for extent in weight.shape)
    k = te.reduce_axis((0, words), name="k")
    return te.compute(
        (*batch, rows, columns),
        lambda *at: te.sum(dot4(_word(x, list(at[:-1]), k), weight(k, at[-1])), axis=k),
        name="quantized_matmul",
        attrs={"schedule_rule": MATMUL},
    )


def quantized_sum(x: te.Tensor, *, keepdims: bool) -> te.Tensor:
    """Compute ``A[n, c] = sum X[n, .., c]`` over pixels or tokens, int32: the mean but for a factor.

    ``x``: uint8 [N, .., C]. ``keepdims``: the axes between stay, of extent 1.
    """
    batch, *places, channels = (int(extent) for extent in x.shape)
    reduced = [te.reduce_axis((0, extent), name=f"r{axis}") for axis, extent in enumerate(places)]
    return te.compute(
        (batch, *[1] * (len(places) if keepdims else 0), channels),
        lambda *at: te.sum(x(at[0], *reduced, at[-1]).astype("int32"), axis=reduced),
        name="quantized_sum",
        attrs={"schedule_rule": CHANNEL_SUM},
    )


def _word(x: te.Tensor, at: Sequence[tirx.Expr], word: tirx.Expr) -> tirx.Expr:
    """Return four neighbouring bytes as a word, as they lie in memory: compilers load it at once."""
    if str(x.dtype) == "int32":
        return x(*at, word)
    low, *others = (x(*at, word * WORD + byte).astype("int32") for byte in range(WORD))
    for byte, other in enumerate(others, 1):
        low = low | (other << (8 * byte))
    return low


def _padded(x: te.Tensor, padding: Sequence[int], zero: int) -> te.Tensor:
    """Pad each image with the byte that stands for 0. Returns X itself without padding."""
    if not any(padding):
        return x
    top, left, bottom, right = padding
    outside = zero if str(x.dtype) == "uint8" else signed(zero * 0x01010101)
    batch, height, width, channels = (int(extent) for extent in x.shape)

    def value(n: tirx.Var, h: tirx.Var, w: tirx.Var, c: tirx.Var) -> tirx.Expr:
        inside = tirx.all(h >= top, h < height + top, w >= left, w < width + left)
        return tirx.if_then_else(inside, x(n, h - top, w - left, c), tirx.const(outside, str(x.dtype)))

    return te.compute((batch, height + top + bottom, width + left + right, channels), value, name="padded")


def requantize(sums: te.Tensor, bias: te.Tensor, before: te.Tensor, factor: te.Tensor, *, zero: int) -> te.Tensor:
    """Compute ``clip(rescaled + zero, 0, 255)``, uint8, where ``rescaled`` has 16 bits:
    ``(clip((A + bias) >> before, -2^15, 2^15 - 1) * factor + 2^14) >> 15``.

    ``sums``: int32 [.., C]. ``bias`` and ``before``: int32 [C], ``factor``: int16 [C], positive; shifts are arithmetic.
    Whoever makes them sees to it that ``A + bias`` and the sum of 16 bits do not overflow.
    """

    def value(*at: tirx.Var) -> tirx.Expr:
        return saturated_uint8(_rescaled(sums, bias, before, factor, at) + tirx.const(zero, "int16"))

    return te.compute(sums.shape, value, name="requantized")


def requantize_sum(
    sums: te.Tensor,
    bias: te.Tensor,
    before: te.Tensor,
    factor: te.Tensor,
    other: te.Tensor,
    *,
    other_factor: int,
    constant: int,
    bits: int,
) -> te.Tensor:
    """Compute ``clip((rescaled + ((other << 7) * other_factor + 2^14 >> 15) + constant) >> bits, 0, 255)``, uint8.

    ``rescaled`` is that of :func:`requantize`. ``other``: uint8 like ``sums``, a residual. Both summands have ``bits``
    fraction bits, and 16 bits in all.
    """

    def value(*at: tirx.Var) -> tirx.Expr:
        wide = other(*at).astype("int16") << tirx.const(OTHER_SHIFT, "int16")
        summand = multiplied_high(wide, tirx.const(other_factor, "int16"))
        total = _rescaled(sums, bias, before, factor, at) + summand + tirx.const(constant, "int16")
        return saturated_uint8(total >> tirx.const(bits, "int16"))

    return te.compute(sums.shape, value, name="requantized")


OTHER_SHIFT = 7
"""Bits by which a residual of eight bits is shifted up: it then fills the 16 bits of a high product."""


def _rescaled(
    sums: te.Tensor, bias: te.Tensor, before: te.Tensor, factor: te.Tensor, at: Sequence[tirx.Var]
) -> tirx.Expr:
    channel = at[-1]
    return multiplied_high(saturated_int16((sums(*at) + bias(channel)) >> before(channel)), factor(channel))


def quantize(x: te.Tensor, *, inverse: float, zero: int, channels: int) -> te.Tensor:
    """Compute ``q = zero + nearest(X * inverse)``, clipped to uint8; halves to even.

    ``x``: float32 [.., C]. Channels up to ``channels`` hold ``zero``.
    """
    *outer, given = (int(extent) for extent in x.shape)

    def value(*at: tirx.Var) -> tirx.Expr:
        channel = at[-1] if channels == given else tirx.min(at[-1], given - 1)
        q = nearest_byte(x(*at[:-1], channel), inverse, zero).astype("uint8")
        return q if channels == given else tirx.if_then_else(at[-1] < given, q, tirx.const(zero, "uint8"))

    return te.compute((*outer, channels), value, name="quantized")


def quantize_words(x: te.Tensor, *, inverse: float, zero: int) -> te.Tensor:
    """Quantise X as :func:`quantize` does, and pack the channels of each pixel, at most four, into a word.

    ``x``: float32 [.., C]. Result: int32 [.., 1]; missing channels hold ``zero``.
    """
    *outer, given = (int(extent) for extent in x.shape)
    missing = signed(sum(zero << (8 * byte) for byte in range(given, WORD)))

    def value(*at: tirx.Var) -> tirx.Expr:
        word: tirx.Expr = tirx.const(missing, "int32")
        for channel in range(given):
            word = word | (nearest_byte(x(*at[:-1], channel), inverse, zero) << (8 * channel))
        return word

    attrs = {"schedule_rule": "pock.quantize_words"}
    return te.compute((*outer, 1), value, name="quantized", attrs=attrs)


def nearest_byte(value: tirx.Expr, inverse: float, zero: int) -> tirx.Expr:
    """Return the byte that stands for a float, as int32."""
    low, high = tirx.const(-zero, "float32"), tirx.const(LARGEST - zero, "float32")
    scaled = value * tirx.const(inverse, "float32")
    return tirx.nearbyint(tirx.min(tirx.max(scaled, low), high)).astype("int32") + zero


def signed(word: int) -> int:
    """Return the int32 of the same bits."""
    return word - 2**32 if word >= 2**31 else word


def dequantize(q: te.Tensor, *, scale: float, zero: int) -> te.Tensor:
    """Compute ``scale * (q - zero)``, float32, of uint8."""
    return te.compute(
        q.shape,
        lambda *at: (q(*at).astype("int32") - zero).astype("float32") * tirx.const(scale, "float32"),
        name="dequantized",
    )


def dequantize_sums(sums: te.Tensor, bias: te.Tensor, scale: te.Tensor) -> te.Tensor:
    """Compute ``(A + bias) * scale``, float32.

    ``sums``: int32 [.., C]. ``bias``: int32 [C], what the zero point adds to the sums. ``scale``: float32 [C].
    """
    return te.compute(
        sums.shape,
        lambda *at: (sums(*at) + bias(at[-1])).astype("float32") * scale(at[-1]),
        name="dequantized",
    )
