"""Exponential functions against NumPy and SciPy in double precision, from one end of float32 to the other."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from scipy import special
from tvm import te, tirx

from schedules.kernels import functions
from schedules.target import Target
from tests.schedules.kernels import call, has_vectors, noise, run, scheduled, traces

Function = Callable[[np.ndarray], np.ndarray]
SMALLEST = float(np.finfo("float32").tiny)  # of normal numbers
LARGEST = float(np.finfo("float32").max)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * special.erfc(-x / np.sqrt(2)) / 2  # erfc: 1 + erf cancels


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * special.expit(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


FUNCTIONS: dict[str, Function] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "erf": special.erf,
    "sigmoid": special.expit,
    "silu": lambda x: x * special.expit(x),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
}
CANCELLING = {"gelu", "gelu_tanh"}
"""``x * (1 + f(x))``, where f goes to -1: exact to a fraction of x, not of the result."""


def elementwise(x: te.Tensor, *, name: str) -> te.Tensor:
    return functions.elementwise(x, getattr(functions, name))


def reference(name: str, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return FUNCTIONS[name](x.astype("float64"))


def assert_exact(name: str, x: np.ndarray, actual: np.ndarray) -> None:
    """Equal but for a few of the last bits; below the smallest normal number (or x times that), zero will do."""
    expected = reference(name, x)
    with np.errstate(over="ignore"):
        rounded = expected.astype("float32").astype("float64")  # what is too large is infinite
    margin = 5e-7 * np.abs(x if name in CANCELLING else rounded) + SMALLEST * np.maximum(1, np.abs(x))
    with np.errstate(invalid="ignore"):
        close = (np.abs(actual.astype("float64") - rounded) <= margin) | (actual == rounded)
    wrong = ~(close | (np.isnan(actual) & np.isnan(expected)))
    assert not wrong.any(), list(zip(x[wrong][:5], actual[wrong][:5], expected[wrong][:5], strict=True))


def sweep() -> np.ndarray:
    """Float32 of all magnitudes, both signs, and many where the functions bend."""
    magnitudes = np.geomspace(1e-38, 3e38, 20_001)
    bends = np.concatenate([np.linspace(0, 1, 10_001), np.linspace(1, 12, 20_001), np.linspace(12, 90, 20_001)])
    positive = np.concatenate([magnitudes, bends, np.linspace(87, 89, 10_001), [np.log(LARGEST), -np.log(SMALLEST)]])
    return np.concatenate([-positive, positive]).astype("float32")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str, target: Target) -> None:
    x = sweep()
    if name == "gelu_tanh":
        x = x[np.abs(x) < 1e12]  # its cube is a float32
    func = scheduled(elementwise, x, target=target, name=name)
    assert not has_vectors(target) or "vectorized" in traces(func)
    assert_exact(name, x, call(func, x, target=target))


def test_gelu_is_exact_above_zero() -> None:
    x = np.linspace(0, 100, 40_001, dtype="float32")
    for name in CANCELLING:
        np.testing.assert_allclose(run(elementwise, x, name=name), reference(name, x), rtol=5e-7, err_msg=name)


LIMITS = {
    "exp": (0, np.inf),
    "expm1": (-1, np.inf),
    "log1p": (np.nan, np.inf),
    "tanh": (-1, 1),
    "erf": (-1, 1),
    "sigmoid": (0, 1),
    "silu": (np.nan, np.inf),  # -inf * 0, as in PyTorch
    "gelu": (np.nan, np.inf),
    "gelu_tanh": (np.nan, np.inf),
}


@pytest.mark.parametrize("length", [1, 3, 7, 24])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_limits(name: str, length: int) -> None:
    low, high = LIMITS[name]
    for value, limit in ((-np.inf, low), (np.inf, high), (np.nan, np.nan), (0, reference(name, np.zeros(1))[0])):
        x = np.full(length, value, "float32")
        np.testing.assert_array_equal(run(elementwise, x, name=name), np.full(length, limit, "float32"))


def test_exp_from_zero_to_infinity() -> None:
    """The ends of its range, where the largest power of two has no float32 of its own."""
    ends = np.float32([np.log(SMALLEST), np.log(LARGEST)])
    inside = np.float32([np.nextafter(ends[0], np.float32(0)), np.nextafter(ends[1], np.float32(0)), 0, 88.7, -87.3])
    result = run(elementwise, inside, name="exp")
    np.testing.assert_allclose(result, reference("exp", inside), rtol=5e-7)
    outside = run(elementwise, np.float32([-88, -104, -1e30, 88.73, 1e30]), name="exp")
    assert outside[0] < SMALLEST
    np.testing.assert_array_equal(outside[1:], [0, 0, np.inf, np.inf])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_double_precision(name: str) -> None:
    x = np.linspace(-9, 9, 1001)
    np.testing.assert_allclose(run(elementwise, x, name=name), reference(name, x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (7, 1), (2, 17), (33, 3), (2, 5, 24), (33, 33, 33), (1, 40_000)], ids=str
)
def test_shapes(shape: tuple[int, ...], target: Target) -> None:
    """Of functions that depend on each other, as FuseTIR leaves them."""

    def kernel(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        first = functions.elementwise(x, functions.exp)
        second = te.compute(x.shape, lambda *i: functions.tanh(first(*i)) + functions.sigmoid(y(*i)), name="second")
        return te.compute(x.shape, lambda *i: functions.erf(second(*i)) * tirx.const(2, "float32"), name="third")

    x, y = noise("shapes", shape, shape)
    expected = 2 * special.erf(np.tanh(np.exp(x.astype("float64"))) + special.expit(y.astype("float64")))
    np.testing.assert_allclose(run(kernel, x, y, target=target), expected, rtol=2e-6)


@functools.cache
def compiled(name: str, length: int) -> Callable[[np.ndarray], np.ndarray]:
    func = scheduled(elementwise, np.zeros(length, "float32"), name=name)
    return lambda x: call(func, x)


NUMBERS = st.floats(-(2.0**40), 2.0**40, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(FUNCTIONS)),
    x=st.sampled_from([3, 16, 33]).flatmap(lambda length: arrays_of.arrays("float32", length, elements=NUMBERS)),
)
def test_any_numbers(name: str, x: np.ndarray) -> None:
    assert_exact(name, x, compiled(name, len(x))(x))
