"""Numbers of a quantised layer: weights of eight bits, and the fixed-point factors that rescale its sums.

Sums are shifted to 16 bits, and multiplied in 16 bits: ``((A + bias) >> before) * factor >> 15``, rounded. Vector
units do that twice as fast as products of 32 bits, and all of them round in the same instruction (``vpmulhrsw``,
``sqrdmulh``, ``vmpy(…):rnd``). Sums that exceed 16 bits lie far outside the eight bits of the result: they are clipped
with the same outcome. The scheme is that of Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference (2018), with factors of :data:`FACTOR_BITS`: a result is off by at most
:data:`MOST_ROUNDING` of its steps, beside half a step for its own rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedules.kernels.integers import HIGH_BITS
from schedules.kernels.plane_taps import place_of_tap
from schedules.kernels.quantized import LARGEST, OTHER_SHIFT, WORD

LARGEST_WEIGHT = 127
"""Weights are symmetric."""
FACTOR_BITS, SUMMAND_BITS = 12, 14
"""Bits of the factor of a result, and of a summand. Sums that a factor of 12 bits brings to eight bits have 12 as well:
a bit more for the one is a bit less for the other. Summands keep fraction bits, so their factor has more."""
MOST_FACTOR = 2**14
"""Largest factor: its products and a zero point fit 16 bits."""
MOST_BEFORE = 15
"""Largest shift of sums: Hexagon's instruction that also saturates takes four bits. Only sums of 4096 products and
more, nearly all of them the largest, would be shifted further; their factors have fewer bits instead."""
MOST_ROUNDING = 1 / 8
"""Error of a result that rounded sums (1/16) and factors (1/16) leave, in its steps."""
BIAS_BITS = 24
"""Most bits of a bias. A channel of tiny weights and a large bias gets a larger scale of weights."""
ANY_SCALE = 2.0**-10
"""Scale of weights that are all zeros, which any would do for: of most layers' order, so that a result's range fits."""
FRACTION_BITS = range(4, 0, -1)
"""Fraction bits of summands, the most first that do not overflow."""
LIMIT, LIMIT_16 = 2**31 - 1, 2**15 - 1


class Unfit(Exception):
    """A layer has no numbers of 32 bits; the message says why."""


@dataclass(frozen=True)
class EightBits:
    """Numbers ``scale * (q - zero)`` of a tensor, ``q`` in [0, 255]."""

    scale: float
    zero: int


def eight_bits(low: float, high: float) -> EightBits:
    """Return the numbers that cover a range and 0, which is exact: it is what convolutions pad with."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / LARGEST))
    if not scale > 0:
        return EightBits(1.0, 0)
    return EightBits(scale, min(LARGEST, round(-low / scale)))


@dataclass(frozen=True)
class Sums:
    """Weights of a layer in eight bits, and what their sums mean: ``(A + bias) * scale`` by output channel."""

    weight: np.ndarray
    """int8, shaped as given; of a mean one for each channel."""
    bias: np.ndarray
    """int64 [C_out]: the layer's own, and what corrects for the input's zero point and the rounding of weights."""
    zero_bias: np.ndarray
    """int64 [C_out]: what corrects for zero point and rounding, without the layer's own."""
    scale: np.ndarray
    """float64 [C_out]."""
    largest: np.ndarray
    """int64 [C_out]: bound of ``|A + bias|`` over all inputs."""


def quantized_sums(
    weight: np.ndarray,
    bias: np.ndarray | None,
    x: EightBits,
    mean: np.ndarray | None = None,
    scale: np.ndarray | None = None,
) -> Sums:
    """Quantise a weight [.., C_in, C_out], symmetrically by output channel, and a bias [C_out].

    ``mean``: [C_in], of the input by channel (for a depthwise weight [.., 1, C]: [C]). What the rounding of weights
    takes from the mean of each sum is added to the bias (Nagel et al., Data-Free Quantization, 2019). ``scale``:
    [C_out] or [1], where a model states it.

    Raises
    ------
    Unfit
        A sum could overflow 32 bits.
    """
    axes = tuple(range(weight.ndim - 1))
    weight, bias = weight.astype(np.float64), np.zeros(weight.shape[-1]) if bias is None else bias.astype(np.float64)
    least = np.abs(bias) / (x.scale * 2**BIAS_BITS)
    if scale is None:
        scale = np.maximum(np.abs(weight).max(axis=axes) / LARGEST_WEIGHT, least)
        scale[scale == 0] = min(scale[scale > 0], default=ANY_SCALE)  # the least of the others fits where they do
    elif (scale < least).any():
        raise Unfit("its bias is too large beside the scale that the model states of its weights")
    else:
        scale = np.broadcast_to(scale, least.shape).astype(np.float64)
    q = np.clip(np.rint(weight / scale), -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int64)
    zero_bias = -x.zero * q.sum(axis=axes)
    if mean is not None:
        lost = weight - q * scale
        shift = lost * (mean if weight.shape[-2] == 1 else mean[:, None])
        zero_bias += np.rint(shift.sum(axis=axes) / (x.scale * scale)).astype(np.int64)
    whole = np.rint(bias / (x.scale * scale)).astype(np.int64) + zero_bias
    low, high = np.minimum(q, 0).sum(axis=axes) * LARGEST, np.maximum(q, 0).sum(axis=axes) * LARGEST
    largest = np.maximum(np.abs(low + whole), np.abs(high + whole))
    if max(int(largest.max()), int(high.max()), int(-low.min())) > LIMIT // 2:
        raise Unfit("a sum could overflow 32 bits")
    return Sums(q.astype(np.int8), whole, zero_bias, x.scale * scale, largest)


def sums_of_mean(count: int, channels: int, x: EightBits) -> Sums:
    """Return what the sums of ``count`` elements of each channel mean as means.

    Raises
    ------
    Unfit
        A sum could overflow 32 bits.
    """
    if count * LARGEST > LIMIT // 2:
        raise Unfit("a sum could overflow 32 bits")
    bias = np.full(channels, -x.zero * count, np.int64)
    largest = np.full(channels, count * max(x.zero, LARGEST - x.zero), np.int64)
    return Sums(np.ones((1, channels), np.int8), bias, bias, np.full(channels, x.scale / count), largest)


@dataclass(frozen=True)
class Rescaling:
    """Vectors of ``pock.requantize``, [C_out] each."""

    bias: np.ndarray
    """int32."""
    before: np.ndarray
    """int32."""
    factor: np.ndarray
    """int16."""

    def vectors(self) -> list[np.ndarray]:
        """Return the vectors in the order in which the operator takes them."""
        return [self.bias, self.before, self.factor]


@dataclass(frozen=True)
class Residual:
    """Numbers of ``pock.requantize_sum`` beside the vectors."""

    other_factor: int
    constant: int
    bits: int


def rescaling(sums: Sums, y: EightBits) -> Rescaling:
    """Return the numbers that rescale sums to ``y``.

    Raises
    ------
    Unfit
        The range of ``y`` is too small for its sums.
    """
    return _rescaling(sums, sums.scale / y.scale, FACTOR_BITS)


def rescaling_with(sums: Sums, y: EightBits, other: EightBits) -> tuple[Rescaling, Residual]:
    """Return the numbers that rescale the sum of a layer and a residual ``other`` to ``y``. Errors: as
    :func:`rescaling`."""
    for bits in FRACTION_BITS:
        ratio = other.scale / y.scale * 2**bits
        other_factor = round(ratio * 2 ** (HIGH_BITS - OTHER_SHIFT))
        constant = (y.zero << bits) + (1 << (bits - 1)) - round(other.zero * ratio)
        # A sum that is clipped to 16 bits decides the result, whatever the residual.
        decides = LARGEST * (ratio + 2**bits) <= 2 ** (SUMMAND_BITS - 1)
        if decides and MOST_FACTOR + other_factor + abs(constant) <= LIMIT_16:
            own = _rescaling(sums, sums.scale / y.scale * 2**bits, SUMMAND_BITS)
            return own, Residual(other_factor, constant, bits)
    raise Unfit("the range of its result is too small for its summands")


def _rescaling(sums: Sums, ratio: np.ndarray, bits: int) -> Rescaling:
    """Return the numbers that multiply sums by ``ratio``, by a factor of so many bits."""
    exact = ratio * 2.0**HIGH_BITS
    before = np.clip(bits - np.frexp(exact)[1], 0, MOST_BEFORE)
    factor = np.rint(exact * 2.0**before)
    if factor.max() > MOST_FACTOR:
        raise Unfit("the range of its result is too small for its sums")
    half = np.where(before > 0, 1 << np.maximum(before.astype(np.int64) - 1, 0), 0)
    return Rescaling((sums.bias + half).astype(np.int32), before.astype(np.int32), factor.astype(np.int16))


def packed(weight: np.ndarray) -> np.ndarray:
    """Pack a weight int8 [.., C_in, C_out] into words of four input channels: int32 [.., ceil(C_in / 4), C_out].

    Missing channels are zeros.
    """
    *outer, rows, columns = weight.shape
    words = -(-rows // WORD)
    whole = np.zeros((*outer, words * WORD, columns), np.int8)
    whole[..., :rows, :] = weight
    split = whole.reshape(*outer, words, WORD, columns)
    return np.ascontiguousarray(np.moveaxis(split, -2, -1)).view("<i4").reshape(*outer, words, columns)


def row_taps_in_words(weight: np.ndarray) -> np.ndarray:
    """Pack the rows of a depthwise weight int8 [R, S, 1, C] into words, int32 [R, ceil(S / 4), C], at the places of
    :func:`schedules.kernels.plane_taps.place_of_tap`."""
    rows, taps, _, channels = weight.shape
    found = np.zeros((rows, -(-taps // WORD), channels, WORD), np.int8)
    for tap in range(taps):
        word, number = divmod(tap, WORD)
        places = place_of_tap(min(WORD, taps - word * WORD), number, np.arange(channels) % WORD)
        found[:, word, np.arange(channels), places] = weight[:, tap, 0]
    return found.view("<i4")[..., 0]


def taps_packed(weight: np.ndarray, phases: int, words: int, stride: int) -> np.ndarray:
    """Pack a depthwise weight int8 [R, S, 1, C] into words of four neighbours of a row: int32 [R, phases, words, C].

    Rows of a phase begin ``stride`` bytes behind those of the one before. Missing taps are zeros.
    """
    rows, taps, _, channels = weight.shape
    whole = np.zeros((rows, phases, words * WORD, channels), np.int8)
    for phase in range(phases):
        whole[:, phase, phase * stride : phase * stride + taps] = weight[:, :, 0]
    split = whole.reshape(rows, phases, words, WORD, channels)
    return np.ascontiguousarray(np.moveaxis(split, -2, -1)).view("<i4").reshape(rows, phases, words, channels)
