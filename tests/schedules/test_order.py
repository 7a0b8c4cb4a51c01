"""Positions in order, against NumPy's stable sort, with ties, infinities and NaN."""

from __future__ import annotations

import numpy as np
import pytest

from schedules.kernels.order import argsort
from schedules.target import Target
from tests.schedules.kernels import run

X = np.array([[2, np.nan, -1, 2, np.inf, -0.0, np.nan], [0, 0, -np.inf, 5, 0, 1, -3]], "float32")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("descending", [False, True])
def test_positions_are_those_of_a_stable_sort(descending: bool, axis: int, target: Target) -> None:
    count = X.shape[axis] - axis
    keys = np.flip(X, axis) if descending else X  # a stable sort from the end keeps the last of equals first
    wanted = np.argsort(keys, axis=axis, kind="stable")
    if descending:
        wanted = X.shape[axis] - 1 - np.flip(wanted, axis)
    ours = run(argsort, X, target=target, axis=axis, descending=descending, count=count)
    np.testing.assert_array_equal(ours, wanted.take(range(count), axis))


def test_integers_are_sorted_exactly() -> None:
    x = np.array([2**62 + 1, 2**62, -(2**62), 2**62 + 2])
    np.testing.assert_array_equal(run(argsort, x, axis=0, descending=False, count=4), [2, 1, 0, 3])
