"""Estimates instead of measurements: what a schedule takes by a model of the core, for targets without a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import tvm
from tvm import tirx
from tvm.target import Target

from relay_passes.ir import first_line
from schedules.decisions import DEFAULTS, Decisions

from ...compiler.database import Trial
from ...compiler.targets import is_gpu, kernel_target, resolve_target
from ...device.machine import CORES
from ...device.program import Program, kernel_calls
from ...errors import PockError
from ..measurer import MeasuringError
from .loops import NoEstimateError
from .mca import kernel_cycles, model_of, tool

STATIC = "static"
BYTES_A_CYCLE = 8
"""Bytes of memory that a core moves in a cycle, for shares of kernels in a step."""


class StaticMeasure:
    """A :class:`pock_tvm.tuning.measurer.Measure` that runs nothing. Its seconds are cycles of the model: only their
    ratio to the default's means anything.

    Raises
    ------
    PockError
        There is no model of the target's core, or its tool is missing.
    """

    def __init__(self, target: Target) -> None:
        if is_gpu(target):
            raise PockError("static estimates are made of CPU kernels: tune a GPU's program on its device")
        tool()
        model_of(target)

    def measure(self, definition: str, target: str, points: Sequence[Decisions]) -> Iterator[Trial]:
        """Yield a trial for each point. Nothing is checked against the default's results, since nothing runs."""
        func, machine = tvm.ir.load_json(definition), resolve_target(target)
        with ThreadPoolExecutor(CORES) as pool:
            try:
                default = _cycles(func, machine, DEFAULTS)
            except Exception as error:
                raise MeasuringError(f"there is no estimate of it: {first_line(error)}") from error
            yield from pool.map(lambda point: _trial(func, machine, point, default), points)

    def reach(self, target: str) -> None:
        """Do nothing: there is no device."""


def _trial(func: tirx.PrimFunc, target: Target, point: Decisions, default: float) -> Trial:
    try:
        return Trial(point, _cycles(func, target, point), default)
    except NoEstimateError as error:
        return Trial(point, None, None, f"no estimate: {error}")
    except Exception as error:
        return Trial(point, None, None, f"cannot be built: {first_line(error)}")


def _cycles(func: tirx.PrimFunc, target: Target, point: Decisions) -> float:
    machine = kernel_target(target)
    return kernel_cycles(machine.lower(machine.schedule(func, point)), target, machine.traits.cores)


def estimated_work(program: Program, target: Target) -> dict[str, float]:
    """Return the cycles of each kernel in a step by its FLOPs and bytes alone, for shares where nothing runs."""
    machine, costs = kernel_target(target), program.manifest["kernels"]
    found: dict[str, float] = {}
    for call, _ in kernel_calls(program.manifest["entries"]["train_step"]):
        cost = costs[call]
        cycles = max(cost["flops"] / (2 * machine.traits.peak), cost["bytes"] / (BYTES_A_CYCLE * machine.traits.cores))
        found[call] = found.get(call, 0.0) + cycles
    return found
