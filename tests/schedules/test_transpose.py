"""Transposes in registers, which must move every element to its place."""

from __future__ import annotations

import numpy as np
import pytest

from pock_tvm.device.memory import aligned
from schedules.kernels.transpose import square_lanes, transpose
from tests.schedules.kernels import built, noise

CASES = [
    ("matrix", (48, 32), (1, 0), 16),
    ("matrices", (3, 16, 32), (0, 2, 1), 16),
    ("weights", (3, 3, 24, 8), (0, 1, 3, 2), 8),
    ("heads to the end", (2, 4, 7, 12), (0, 2, 3, 1), 4),
    ("first to last", (16, 5, 3, 32), (3, 1, 2, 0), 16),
    ("everything turned", (4, 3, 2, 8), (3, 2, 1, 0), 4),
    ("others move too", (2, 3, 8, 4), (1, 3, 0, 2), 4),
]


@pytest.mark.parametrize(("name", "shape", "axes", "lanes"), CASES, ids=[case[0] for case in CASES])
def test_transpose(name: str, shape: tuple[int, ...], axes: tuple[int, ...], lanes: int) -> None:
    (x,) = noise(name, shape)
    expected = np.ascontiguousarray(x.transpose(axes))
    y = aligned(expected.shape, "float32")
    assert square_lanes(shape, axes, 16) == lanes
    built(transpose(shape, axes, "float32", lanes))(x, y)
    assert np.array_equal(y, expected)


def test_squares_fit_both_axes_and_the_target() -> None:
    assert square_lanes((64, 64), (1, 0), 4) == 4
    assert square_lanes((64, 24), (1, 0), 16) == 8
    assert square_lanes((17, 64), (1, 0), 16) is None
    assert square_lanes((2, 16, 16), (1, 0, 2), 16) is None
