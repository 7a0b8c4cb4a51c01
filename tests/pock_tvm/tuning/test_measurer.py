"""The worker process: what schedules do to it costs themselves alone."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
import tvm
from tvm import te, tirx

from pock_tvm.compiler.targets import kernel_target, resolve_target
from pock_tvm.tuning import measurer as module
from pock_tvm.tuning.measurer import Measurer, MeasuringError
from pock_tvm.tuning.space import Space
from schedules.kernels.matmul import matmul
from tests.pock_tvm.tuning import hostile_worker as hostile
from tests.schedules.kernels import defined
from tests.schedules.test_decisions import noise

HOST = resolve_target("host")
TARGET = str(HOST)


def product() -> tirx.PrimFunc:
    arrays = noise("product", (2, 6, 5), (5, 16))
    return defined(matmul, *arrays, transpose_a=False, transpose_b=False).with_attr("global_symbol", "product")


FUNC = product()
DEFINITION = tvm.ir.save_json(FUNC)
DEFAULT = Space(kernel_target(HOST), FUNC).default
OTHERS = [point for point in Space(kernel_target(HOST), FUNC).points() if point != DEFAULT]


@pytest.fixture(scope="module")
def hostile_measurer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WORKER", hostile.__name__)
        with Measurer() as found:
            yield found


def test_schedules_are_measured(hostile_measurer: Measurer) -> None:
    trials = list(hostile_measurer.measure(DEFINITION, TARGET, [DEFAULT, *OTHERS[:2]]))
    assert [trial.decisions for trial in trials] == [DEFAULT, *OTHERS[:2]]
    assert all(trial.failure is None and trial.seconds > 0 and trial.reference > 0 for trial in trials)
    assert list(hostile_measurer.measure(DEFINITION, TARGET, [])) == []


@pytest.mark.parametrize(
    "failures",
    [
        {
            hostile.WRONG: "wrong: operand 2: differs by",
            hostile.UNBUILT: "cannot be built: this cannot be scheduled",
            hostile.STRAY: "fails: it writes outside its operands",
            hostile.CRASH: "crashes: SIGSEGV",
        },
        {hostile.CRASH_BUILDING: "crashes: SIGABRT"},
    ],
    ids=["measuring", "building"],
)
def test_a_fault_costs_one_trial(hostile_measurer: Measurer, failures: dict[int, str]) -> None:
    bad = [DEFAULT | {hostile.FAULT: fault} for fault in failures]
    points = [OTHERS[0], *bad, OTHERS[1]]
    trials = {str(trial.decisions): trial for trial in hostile_measurer.measure(DEFINITION, TARGET, points)}
    assert len(trials) == len(points)
    for point, failure in zip(bad, failures.values(), strict=True):
        assert trials[str(point)].seconds is None and trials[str(point)].failure.startswith(failure)
    assert all(trials[str(point)].failure is None for point in points if point not in bad)


def test_a_schedule_that_hangs_costs_one_trial(hostile_measurer: Measurer, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = DEFAULT | {hostile.FAULT: hostile.HANG}
    build_limit, _ = hostile_measurer._limits
    with monkeypatch.context() as patch:
        patch.setattr(
            hostile_measurer, "_limits", (build_limit, 2)
        )  # too few seconds for what is well, on a busy machine
        (trial,) = hostile_measurer.measure(DEFINITION, TARGET, [bad])
    assert trial.seconds is None and trial.failure == "hangs: nothing for 2 s"
    (trial,) = hostile_measurer.measure(DEFINITION, TARGET, [DEFAULT])
    assert trial.failure is None


def test_a_kernel_whose_default_fails_is_refused(hostile_measurer: Measurer) -> None:
    x = te.placeholder((8,), "float32", "x")
    func = te.create_prim_func([x, te.compute((8,), lambda i: tirx.call_extern("float32", "no_such_function", x[i]))])
    definition = tvm.ir.save_json(func.with_attr("global_symbol", "unresolved"))
    with pytest.raises(MeasuringError, match="the default schedule fails: "):
        list(hostile_measurer.measure(definition, TARGET, [{}]))
    # The worker goes on.
    assert list(hostile_measurer.measure(DEFINITION, TARGET, [DEFAULT]))[0].failure is None


def test_the_worker_ends_with_its_parent() -> None:
    with Measurer() as measurer:
        list(measurer.measure(DEFINITION, TARGET, [DEFAULT]))
        process = psutil.Process(measurer._child.pid)
        os.kill(process.pid, signal.SIGINT)  # Ctrl-C reaches it, too
        assert list(measurer.measure(DEFINITION, TARGET, [DEFAULT]))[0].failure is None
        assert process.is_running()
    deadline = time.monotonic() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
