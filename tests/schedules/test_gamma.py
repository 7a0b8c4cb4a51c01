"""The logarithm of the gamma function and its derivative, against SciPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from schedules.kernels import gamma
from tests.schedules.kernels import run

FUNCTIONS = {"lgamma": special.gammaln, "digamma": special.digamma}
ZEROS = np.concatenate([zero + np.linspace(-1e-4, 1e-4, 501) for zero in (1, 2)])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32(name: str) -> None:
    """A few of the last bits above 0; below, as much of the larger of the terms that cancel."""
    positive = np.concatenate([np.geomspace(1e-38, 3e38, 5001), np.linspace(1e-3, 12, 10_001), ZEROS])
    x = np.concatenate([positive, -positive]).astype("float32")
    actual, exact = run(getattr(gamma, name), x), FUNCTIONS[name](x.astype("float64"))
    with np.errstate(over="ignore"):
        expected = exact.astype("float32")
    np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
    terms = np.where(x < 0, np.abs(exact) + np.abs(FUNCTIONS[name](1 - x.astype("float64"))), np.abs(exact))
    terms += np.where((x < 0) | (name == "digamma"), np.abs(x) < 1e5, 0)  # 1: beside digamma's zeros
    shown = np.isfinite(actual)
    assert (np.abs(actual[shown] - exact[shown]) <= 1e-6 * terms[shown]).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64(name: str) -> None:
    x = np.linspace(0.01, 12, 1001)
    np.testing.assert_allclose(run(getattr(gamma, name), x), FUNCTIONS[name](x), rtol=1e-8, atol=1e-9)


LIMITS = {
    "lgamma": {0: np.inf, -1: np.inf, -1e38: np.inf, np.inf: np.inf, -np.inf: np.inf, 1: 0, 2: 0},
    "digamma": {0: -np.inf, -1: np.nan, -1e38: np.nan, np.inf: np.inf, -np.inf: np.nan},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_limits(name: str) -> None:
    x = np.float32([np.nan, *LIMITS[name]])
    np.testing.assert_array_equal(run(getattr(gamma, name), x), np.float32([np.nan, *LIMITS[name].values()]))
