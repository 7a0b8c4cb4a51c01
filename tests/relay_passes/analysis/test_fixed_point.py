"""Numbers of layers in eight bits: near those in float, and never too large."""

from __future__ import annotations

import numpy as np
import pytest

from relay_passes.analysis.fixed_point import (
    MOST_ROUNDING,
    EightBits,
    Unfit,
    eight_bits,
    packed,
    quantized_sums,
    rescaling,
    rescaling_with,
    sums_of_mean,
)

RNG = np.random.default_rng(0)
X = EightBits(0.03, 117)


def layer(terms: int = 96, columns: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Weights whose channels differ in size, one of them zero, and a bias."""
    weight = RNG.standard_normal((terms, columns)) * np.exp(3 * RNG.standard_normal(columns))
    weight[:, 3] = 0
    weight[:, 4] *= 1e-12  # a bias beside which the weights are nothing
    return weight, RNG.standard_normal(columns)


def test_zero_is_exact_and_the_ends_are_covered() -> None:
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 6.0), (0.0, 0.0)):
        numbers = eight_bits(low, high)
        assert 0 <= numbers.zero <= 255
        ends = numbers.scale * (np.array([0, 255]) - numbers.zero)
        assert ends[0] <= min(low, 0) + numbers.scale / 2
        assert ends[1] >= high - numbers.scale / 2


def test_words_hold_four_input_channels() -> None:
    weight = RNG.integers(-127, 128, (3, 6, 5)).astype("int8")
    words = packed(weight)
    assert (words.shape, words.dtype) == ((3, 2, 5), np.dtype("int32"))
    unpacked = np.moveaxis(words.view("int8").reshape(3, 2, 5, 4), -1, -2).reshape(3, 8, 5)
    np.testing.assert_array_equal(unpacked[:, :6], weight)
    assert not unpacked[:, 6:].any()


@pytest.mark.parametrize("with_other", [False, True])
def test_rescaled_sums_are_those_in_float_and_fit_32_bits(with_other: bool) -> None:
    weight, bias = layer()
    sums = quantized_sums(weight, bias, X)
    x = np.concatenate([RNG.integers(0, 256, (200, 96)), np.zeros((1, 96), int), np.full((1, 96), 255)])
    worst = np.where(sums.weight[:, 7] > 0, 255, 0)  # the largest sum of a channel
    x = np.concatenate([x, worst[None], 255 - worst[None]])
    exact = (x - X.zero) * X.scale @ (sums.weight * sums.scale / X.scale) + bias
    y, other = eight_bits(*np.quantile(exact, (0.01, 0.99))), EightBits(0.5, 40)
    total = x @ sums.weight.astype("int64") + sums.bias
    assert (np.abs(total) <= sums.largest).all()
    if with_other:
        numbers, residual = rescaling_with(sums, y, other)
        added = RNG.integers(0, 256, exact.shape)
        exact = exact + (added - other.zero) * other.scale
    else:
        numbers = rescaling(sums, y)
    bias_, before, factor = (each.astype("int64") for each in numbers.vectors())
    first = x @ sums.weight.astype("int64") + bias_
    assert np.abs(first).max() < 2**31
    second = np.clip(first >> before, -(2**15), 2**15 - 1) * factor
    found = (second + 2**14) >> 15
    if with_other:
        wide = 128 * added
        assert wide.max() < 2**15
        summand = (wide * residual.other_factor + 2**14) >> 15
        found = found + summand + residual.constant
        assert np.abs(found).max() < 2**15
        found = found >> residual.bits
    else:
        found = found + y.zero
    expected = np.clip(np.rint(exact / y.scale) + y.zero, 0, 255)
    unrounded = np.clip(exact / y.scale + y.zero, 0, 255)
    assert np.abs(np.clip(found, 0, 255) - unrounded).max() <= 0.5 + MOST_ROUNDING
    assert (np.clip(found, 0, 255) != expected).mean() < 0.1


def test_the_mean_of_sums_outlives_the_rounding_of_weights() -> None:
    weight, bias = layer()
    q = RNG.integers(180, 256, 96)
    mean = (q - X.zero) * X.scale
    exact = mean @ weight + bias

    def error(sums) -> float:
        found = (q @ sums.weight.astype("int64") + sums.bias) * sums.scale
        return float(np.linalg.norm((found - exact)[5:]))

    assert error(quantized_sums(weight, bias, X, mean)) < 0.5 * error(quantized_sums(weight, bias, X))


def test_what_does_not_fit_32_bits_is_refused() -> None:
    with pytest.raises(Unfit, match="overflow"):
        quantized_sums(np.ones((80_000, 2)), None, X)
    sums = quantized_sums(np.ones((8, 2)), None, X)
    with pytest.raises(Unfit, match="range of its result"):
        rescaling(sums, EightBits(1e-9, 0))
    with pytest.raises(Unfit, match="range of its result"):
        rescaling_with(sums, EightBits(1e-6, 0), X)


def test_a_mean_is_that_in_float() -> None:
    x = RNG.integers(0, 256, (50, 35, 8))
    exact = ((x - X.zero) * X.scale).mean(1)
    sums, y = sums_of_mean(35, 8, X), eight_bits(exact.min(), exact.max())
    total = x.sum(1)
    np.testing.assert_allclose((total + sums.bias) * sums.scale, exact, rtol=1e-12, atol=1e-12)
    assert (np.abs(total + sums.bias) <= sums.largest).all()
    bias, before, factor = (each.astype("int64") for each in rescaling(sums, y).vectors())
    found = ((np.clip((total + bias) >> before, -(2**15), 2**15 - 1) * factor + 2**14) >> 15) + y.zero
    assert np.abs(found - (exact / y.scale + y.zero)).max() <= 0.5 + MOST_ROUNDING
    with pytest.raises(Unfit, match="a sum could overflow 32 bits"):
        sums_of_mean(2**23, 8, X)


def test_a_channel_of_zeros_keeps_no_layer_in_float() -> None:
    weight = np.full((8, 3), 1e-3)
    weight[:, 1] = 0
    sums = quantized_sums(weight, None, X)
    assert (rescaling(sums, EightBits(1e-5, 128)).factor > 0).all()
    zeros = quantized_sums(np.zeros((8, 3)), None, X)
    assert not zeros.weight.any() and (rescaling(zeros, X).factor > 0).all()
