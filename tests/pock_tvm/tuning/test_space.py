"""Spaces of schedules: walks find every point, and stay inside."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tvm
import tvm_ffi

from pock_tvm.compiler.database import text_of
from pock_tvm.tuning.space import Space, nearest, new_points, own_space
from schedules.generic import METASCHEDULE
from schedules.loops import Unsuited
from tests.schedules.test_decisions import KERNELS, TARGETS, kernel_of

CPU = TARGETS["cpu"]


def space(name: str) -> Space:
    return Space(CPU, kernel_of(name)[0])


@pytest.mark.parametrize("name", ["transpose", "rows", "sum over rows", "depthwise"])
def test_every_point_comes_once_and_schedules(name: str) -> None:
    found = list(space(name).points())
    assert found[0] == space(name).default and len(found) > 1
    assert len({text_of(point) for point in found}) == len(found)
    for point in found:
        choices = CPU.options(kernel_of(name)[0], point)
        assert {key: choice.decided for key, choice in choices.items()} == point


def test_draws_are_points_and_reach_them_all() -> None:
    tuned, rng = space("transpose"), np.random.default_rng(0)
    known = {text_of(point) for point in tuned.points()}
    found: set[str] = set()
    for _ in range(8):  # a draw gives up after some that bring nothing new
        new_points(lambda: tuned.sample(rng), found, len(known))
    assert found == known


@pytest.mark.parametrize("name", KERNELS)
def test_a_mutation_is_another_point(name: str) -> None:
    tuned, rng = space(name), np.random.default_rng(0)
    for _ in range(5):
        mutated = tuned.mutate(tuned.default, rng)
        assert mutated is not None and mutated != tuned.default
        assert CPU.schedule(tuned.func, mutated) is not None


def test_a_cross_takes_from_both() -> None:
    tuned, rng = space("wide product"), np.random.default_rng(0)
    one, other = tuned.default, tuned.sample(rng)
    assert other is not None
    for _ in range(5):
        crossed = tuned.cross(one, other, rng)
        assert crossed is not None
        shared = [name for name in crossed if name in one and name in other]
        assert all(crossed[name] in (one[name], other[name]) for name in shared)


def test_decisions_of_another_kernel_are_made_to_fit() -> None:
    large, small = space("wide product"), space("product")
    for point in (large.sample(np.random.default_rng(seed)) for seed in range(5)):
        assert point is not None
        repaired = small.repaired(point)
        assert repaired is not None
        CPU.schedule(small.func, repaired)


def test_the_nearest_option() -> None:
    assert nearest((4, 32), [(4, 32), (2, 64)], (2, 64)) == (4, 32)
    assert nearest((5, 32), [(2, 64), (4, 32), (64, 2)], (2, 64)) == (4, 32)
    assert nearest(7, [1, 2, 8], 1) == 8
    assert nearest((4, 32), [1, 2], 2) == 2  # of another form
    assert nearest(0, [1, 16], 16) == 1


@pytest.mark.parametrize(
    ("error", "faults"),
    [(Unsuited("no"), {}), (tvm.error.InternalError("no"), {"InternalError: no": 36})],
)
def test_what_cannot_be_scheduled_is_no_point(error: Exception, faults) -> None:
    class Broken:
        def walk(self, func, decide, space):
            raise error

    broken = Space(Broken(), kernel_of("product")[0])  # type: ignore[arg-type]
    assert [broken.sample(np.random.default_rng(0)) for _ in range(4)] == [None] * 4
    assert new_points(lambda: broken.sample(np.random.default_rng(0)), set(), 3) == []
    assert broken.faults == faults  # what a schedule says by its own errors is none


@pytest.mark.parametrize("name", KERNELS)
def test_the_generic_space_replays(name: str) -> None:
    func, rng = kernel_of(name)[0], np.random.default_rng(0)
    tuned = Space(CPU, func, (METASCHEDULE,))
    default = CPU.schedule(func)
    assert any(choice.startswith("tile") for choice in tuned.default) == (name not in ("transpose", "fallback"))
    for point in [tuned.default, *(tuned.sample(rng) for _ in range(3))]:
        assert point is not None and point[f"space:{METASCHEDULE}"] is True
        assert tuned.completed(point) == point
        scheduled = CPU.schedule(func, point)
        assert tvm_ffi.structural_equal(scheduled, CPU.schedule(func, json.loads(json.dumps(point))))
        assert not tvm_ffi.structural_equal(scheduled, default)
    mutated = tuned.mutate(tuned.default, rng)
    assert mutated is None or CPU.schedule(func, mutated) is not None


def test_kernels_without_a_rule_have_the_generic_space_beside_their_own() -> None:
    tuned, rng = own_space(CPU, kernel_of("fallback")[0]), np.random.default_rng(0)
    assert own_space(CPU, kernel_of("product")[0]).names == (None,)
    found = list(tuned.points())
    assert found[0] == Space(CPU, tuned.func).default == tuned.default and "sketch" not in found[0]
    assert len({text_of(point) for point in found}) == len(found)
    drawn = [tuned.sample(rng) for _ in range(16)]
    assert {"sketch" in point for point in drawn if point is not None} == {False, True}
    for point in drawn:
        assert point is not None and tuned.repaired(point) == point == tuned.completed(point)
        mutated = tuned.mutate(point, rng)
        assert mutated is None or ("sketch" in mutated) == ("sketch" in point)
