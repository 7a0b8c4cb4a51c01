"""Transposes that are kernels of their own, which must move every element to its place."""

from __future__ import annotations

import numpy as np
import pytest

from schedules.cpu import CpuTarget
from schedules.cpu.traits import CpuTraits
from schedules.cpu.transpose import square_lanes
from schedules.kernels.transpose import transpose
from schedules.target import Target
from tests.schedules.kernels import HOST, LLVM, defined, noise, run, scheduled

CASES = [
    ("matrix", (48, 32), (1, 0), 16),
    ("matrices", (3, 16, 32), (0, 2, 1), 16),
    ("weights", (3, 3, 24, 8), (0, 1, 3, 2), 8),
    ("heads to the end", (2, 4, 7, 12), (0, 2, 3, 1), 4),
    ("first to last", (16, 5, 3, 32), (3, 1, 2, 0), 16),
    ("everything turned", (4, 3, 2, 8), (3, 2, 1, 0), 4),
    ("others move too", (2, 3, 8, 4), (1, 3, 0, 2), 4),
    ("the last squares overlap", (17, 64), (1, 0), 16),
    ("smaller squares overlap less", (2, 33, 7, 5), (0, 2, 3, 1), 4),
    ("odd both ways", (3, 197, 33), (0, 2, 1), 16),
    ("strips abreast", (3, 128, 48), (0, 2, 1), 16),
    ("many strips abreast", (256, 33), (1, 0), 16),
    ("no square fits", (3, 64), (1, 0), 0),
]


@pytest.mark.parametrize(("name", "shape", "axes", "lanes"), CASES, ids=[case[0] for case in CASES])
def test_transpose(name: str, shape: tuple[int, ...], axes: tuple[int, ...], lanes: int, target: Target) -> None:
    (x,) = noise(name, shape)
    assert np.array_equal(run(transpose, x, axes=axes, target=target), x.transpose(axes))


@pytest.mark.parametrize(("name", "shape", "axes", "lanes"), CASES, ids=[case[0] for case in CASES])
def test_a_cpu_shuffles_squares_that_fit(
    name: str, shape: tuple[int, ...], axes: tuple[int, ...], lanes: int, cpu: CpuTarget
) -> None:
    (x,) = noise(name, shape)
    side = min(lanes, cpu.traits.lanes)
    assert square_lanes(shape, axes, cpu.traits)[:1] == [side] * (side > 0)
    script = scheduled(transpose, x, axes=axes, target=cpu).script()
    assert ("T.Shuffle" in script) == (side > 0)
    assert side == 0 or f", 1, {side})" in script


@pytest.mark.parametrize(("shape", "abreast"), [((256, 64), 4), ((192, 64), 2), ((48, 64), 1), ((32, 64), 1)])
def test_a_task_writes_adjacent_lines_where_the_cores_stay_busy(shape: tuple[int, int], abreast: int) -> None:
    traits = CpuTraits(lanes=16, registers=32, cores=2)
    (x,) = noise("abreast", shape)
    offered = CpuTarget(traits, LLVM).options(defined(transpose, x, axes=(1, 0)))
    assert offered["abreast"].default == abreast


def test_only_large_transposes_that_move_the_last_axis_are_alone() -> None:
    alone = HOST.layouts.transposes_alone
    assert alone((256, 128), (1, 0), "float32")
    assert not alone((64, 64), (1, 0), "float32")
    assert not alone((3, 8192), (1, 0), "float32")
    assert not alone((16, 16, 128), (1, 0, 2), "float32")
    assert not alone((256, 128), (1, 0), "int32")
