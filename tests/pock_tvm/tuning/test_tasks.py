"""Tasks of the tuner: which kernels of a program come first."""

from __future__ import annotations

import pytest

import pock_tvm as pock
from pock_tvm.compiler.database import Trial
from pock_tvm.compiler.rebuild import definitions_of, target_of
from pock_tvm.compiler.targets import kernel_target
from pock_tvm.device.program import kernel_calls
from pock_tvm.tuning.tasks import LEAST_STAKE, Task, tasks_of
from tests.pock_tvm.networks import small

RATE = 1e10
"""Operations and bytes of a second."""


@pytest.fixture(scope="module")
def program() -> pock.Program:
    return pock.compile(small(4), batch_norm="frozen", check=False)


def seconds_of(program: pock.Program, slow: str | None = None) -> dict[str, float]:
    """Seconds of kernels that all run at the same rates, but for a slow one."""
    found: dict[str, float] = {}
    for name, _ in kernel_calls(program.manifest["entries"]["train_step"]):
        cost = program.manifest["kernels"][name]
        taken = max(cost["flops"], cost["bytes"]) / RATE
        found[name] = found.get(name, 0.0) + taken * (4 if name == slow else 1)
    return found


def tasks(program: pock.Program, seconds: dict[str, float]) -> dict[str, Task]:
    found = tasks_of(program, kernel_target(target_of(program)), seconds)
    return {name: task for task in found for name in task.names}


def test_a_kernel_below_the_rates_of_others_comes_first(program: pock.Program) -> None:
    even = tasks(program, seconds_of(program))
    slow = sorted(even, key=lambda name: -even[name].share)[2]
    seconds = seconds_of(program, slow)
    found = tasks(program, seconds)
    assert max(found.values(), key=lambda task: task.priority) is found[slow]
    assert found[slow].stake == pytest.approx(0.75 * found[slow].share)
    assert sum(seconds.values()) * found[slow].share == pytest.approx(seconds[slow])
    others = [task for task in found.values() if task is not found[slow]]
    assert all(task.stake == pytest.approx(0) for task in others) and all(task.priority > 0 for task in others)


def test_priority_falls_with_what_was_found_and_what_was_not(program: pock.Program) -> None:
    name = max(definitions_of(program).keys() & seconds_of(program).keys(), key=seconds_of(program).__getitem__)
    task = next(iter(tasks(program, seconds_of(program, name)).values()))
    task.stake, task.share = 0.5, 0.6
    task.take([Trial({}, 1.0, 1.2)])
    assert task.priority == pytest.approx(0.5 - 0.6 * (1 - 1 / 1.2))
    task.take([Trial({}, 1.0, 1.1)])
    assert task.priority == pytest.approx((0.5 - 0.6 * (1 - 1 / 1.2)) / 2)
    task.take([Trial({}, 1.0, 100.0)])
    assert task.priority == pytest.approx(LEAST_STAKE * 0.6)
