"""Numbers of a quantised layer: weights of eight bits, and the fixed-point factors that rescale its sums.

Sums are rescaled in 32 bits: ``((A + bias) >> before) * factor >> after``. ``before`` leaves :data:`SUM_BITS` bits of
the largest sum that the weights allow, and ``factor`` has :data:`FACTOR_BITS`: no product overflows, whatever the
input. The scheme is that of Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference (2018), without its products of 64 bits, which few vector units have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from schedules.kernels.quantized import LARGEST, WORD

LARGEST_WEIGHT = 127
"""Weights are symmetric."""
SUM_BITS, FACTOR_BITS = 17, 13
"""Bits of sums and factors. Their product has 30, which leaves one for rounding and zero point."""
MOST_AFTER = 22
"""Largest last shift: a zero point of eight bits, shifted so far, fits 30 bits."""
BIAS_BITS = 24
"""Most bits of a bias. A channel of tiny weights and a large bias gets a larger scale of weights."""
FRACTION_BITS = range(12, 3, -1)
"""Fraction bits of summands, the most first that do not overflow."""
LIMIT = 2**31 - 1


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
    """int8, shaped as given."""
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
        scale[scale == 0] = 1.0
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


@dataclass(frozen=True)
class Rescaling:
    """Vectors of ``pock.requantize``: int32 [C_out] each."""

    bias: np.ndarray
    before: np.ndarray
    factor: np.ndarray
    rounding: np.ndarray
    after: np.ndarray

    def vectors(self) -> list[np.ndarray]:
        """Return the vectors in the order in which the operator takes them."""
        return [self.bias, self.before, self.factor, self.rounding, self.after]


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
    before, factor, after = _factors(sums, y, MOST_AFTER)
    rounding = (1 << (after - 1)) + (y.zero << after)
    return _rescaling(sums, before, factor, rounding, after)


def rescaling_with(sums: Sums, y: EightBits, other: EightBits) -> tuple[Rescaling, Residual]:
    """Return the numbers that rescale the sum of a layer and a residual ``other`` to ``y``. Errors: as
    :func:`rescaling`."""
    before, factor, shift = _factors(sums, y, MOST_AFTER)
    for bits in FRACTION_BITS:
        after = shift - bits
        if after.min() < 1:
            continue
        other_factor = round(other.scale / y.scale * 2**bits)
        constant = (y.zero << bits) + (1 << (bits - 1)) - other.zero * other_factor
        own = int((((sums.largest >> before) + 1) * factor >> after).max()) + 1
        if own + LARGEST * other_factor + abs(constant) <= LIMIT:
            return _rescaling(sums, before, factor, 1 << (after - 1), after), Residual(other_factor, constant, bits)
    raise Unfit("the range of its result is too small for its summands")


def _factors(sums: Sums, y: EightBits, most_after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``before``, ``factor`` and ``after`` with ``factor / 2^after = scale * 2^before / y.scale``."""
    before = np.array([max(0, int(bound).bit_length() - SUM_BITS) for bound in sums.largest], np.int64)
    exact = sums.scale / y.scale * 2.0**before
    after = np.array([min(most_after, FACTOR_BITS - math.frexp(each)[1]) for each in exact], np.int64)
    factor = np.rint(exact * 2.0**after).astype(np.int64)
    if after.min() < 1:
        raise Unfit("the range of its result is too small for its sums")
    return before, factor, after


def _rescaling(
    sums: Sums, before: np.ndarray, factor: np.ndarray, rounding: np.ndarray, after: np.ndarray
) -> Rescaling:
    half = np.where(before > 0, 1 << np.maximum(before - 1, 0), 0)
    vectors = (sums.bias + half, before, factor, rounding, after)
    return Rescaling(*(np.broadcast_to(each, before.shape).astype(np.int32) for each in vectors))


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
