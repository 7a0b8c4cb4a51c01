"""Weight gradients that update the weight and sum gradient times weight, against NumPy in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schedules.cpu import CpuTarget
from schedules.cpu.traits import CpuTraits
from schedules.decisions import DEFAULTS, Decisions
from schedules.kernels.conv2d import conv2d_weight_gradient
from schedules.kernels.joint_update import product_update
from schedules.kernels.update import Layout
from schedules.target import GENERIC, Target
from tests.schedules.kernels import CPUS, LLVM, assert_close, built, defined, doubles, noise
from tests.schedules.test_update import LR, UPDATES

TWO_PORTS = CpuTarget(CpuTraits(lanes=16, registers=32, cores=2, fma_ports=2), LLVM)
"""A core that packs dY."""
CASES = {
    "1x1": ((1, 4, 4, 12), (1, 4, 4, 64), 1, 1),
    "3x3": ((1, 6, 5, 24), (1, 4, 3, 96), 3, 1),
    "1x1 with a stride, of two images": ((2, 8, 8, 24), (2, 4, 4, 96), 1, 2),
    "33 columns": ((1, 6, 5, 7), (1, 4, 3, 33), 3, 1),
    "1x1 of many columns": ((1, 7, 7, 32), (1, 7, 7, 512), 1, 1),
}
"""Shapes of X and dY, the kernel's size, the stride."""


@pytest.mark.parametrize("case", CASES)
def test_a_weight_is_updated_and_summed(case: str) -> None:
    _check(case, "sgd, momentum", TWO_PORTS)


@pytest.mark.parametrize("cpu", CPUS)
def test_any_tile_updates_and_sums(cpu: str) -> None:
    _check("3x3", "adam", CPUS[cpu])


@pytest.mark.parametrize("pack", [False, True])
def test_decisions(pack: bool) -> None:
    _check("1x1 of many columns", "sgd", TWO_PORTS, {"tile": (1, 1, 4, 64), "pack": pack})


def _check(case: str, name: str, target: Target, decisions: Decisions = DEFAULTS) -> None:
    x_shape, dy_shape, size, stride = CASES[case]
    build, options, reference, count, vectors = UPDATES[name]
    shape = (size, size, x_shape[-1], dy_shape[-1])
    x, dy, weight, scale, sums = noise(case, x_shape, dy_shape, shape, shape[-1:], shape[-1:])
    states = noise("states", *[shape] * (count - 1))
    for square in states[1:]:
        square *= square
    lengths = {vector: len(values) for vector, values in vectors.items()} | {"scale": shape[-1]}
    update = build(Layout(shape, "float32"), **options, vectors=lengths)
    geometry: dict[str, Any] = {"strides": [stride] * 2, "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
    product = defined(conv2d_weight_gradient, x, dy, **geometry, kernel_size=(size, size))
    func = target.schedule(product_update(product, update, 1, sums=True), decisions)
    assert GENERIC not in func.attrs and "parallel" in func.script()
    wide = doubles(x, dy)
    gradient = np.array([[_at(*wide, r, s, stride) for s in range(size)] for r in range(size)])
    total = (gradient * weight).sum((0, 1, 2))
    expected = reference(doubles(weight)[0], gradient * scale, *doubles(*states), **options)
    given = [np.array(values, "float32") for values in vectors.values()]
    sums[...] = np.nan
    assert given[0][0] == np.float32(LR)
    built(func, target)(weight, *states, *given, scale, x, dy, sums)
    for actual, wanted in zip([weight, *states, sums], [*expected, total], strict=True):
        assert_close(actual, wanted)


def _at(x: np.ndarray, dy: np.ndarray, r: int, s: int, stride: int) -> np.ndarray:
    """The gradient of the weight of one tap."""
    height, width = dy.shape[1:3]
    read = x[:, r : r + stride * height : stride, s : s + stride * width : stride]
    return np.einsum("nhwi,nhwo->io", read, dy)
