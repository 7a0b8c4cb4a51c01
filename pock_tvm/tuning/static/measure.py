"""Estimates instead of measurements: what a schedule takes by a model of the machine, for targets without a device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import tvm
from tvm import tirx
from tvm.target import Target

from relay_passes.ir import first_line
from schedules.decisions import DEFAULTS, Decisions
from schedules.gpu.target import GpuTarget
from schedules.gpu.text.code import described
from schedules.gpu.text.cubin import NoCudaCompilerError, check_compiler

from ...compiler.database import Trial
from ...compiler.targets import is_gpu, kernel_target, resolve_target
from ...device.machine import CORES
from ...device.program import Program, kernel_calls
from ...errors import PockError
from ..measurer import MeasuringError
from . import mca, packets, ptx
from .cycles import kernel_cycles
from .loops import NoEstimateError

STATIC = "static"
BYTES_A_CYCLE = 8
"""Bytes of memory that a core moves in a cycle, for shares of kernels in a step."""


class StaticMeasure:
    """A :class:`pock_tvm.tuning.measurer.Measure` that runs nothing. Its seconds are cycles of the model: only their
    ratio to the default's means anything.

    Raises
    ------
    PockError
        There is no model of the target, or its tool is missing.
    """

    def __init__(self, target: Target) -> None:
        if packets.is_hexagon(target):
            return
        if not is_gpu(target):
            mca.tool()
            mca.model_of(target)
        elif target.kind.name == "cuda":
            try:
                check_compiler()
            except NoCudaCompilerError as error:
                raise PockError(str(error)) from error
        else:
            raise PockError("static estimates are made for CPUs and for CUDA: tune this GPU's program on its device")

    def measure(self, definition: str, target: str, points: Sequence[Decisions]) -> Iterator[Trial]:
        """Yield a trial for each point. Nothing is checked against the default's results, since nothing runs."""
        cycles = functools.partial(_cycles, tvm.ir.load_json(definition), resolve_target(target))
        with ThreadPoolExecutor(CORES) as pool:
            try:
                default = cycles(DEFAULTS)
            except Exception as error:
                raise MeasuringError(f"there is no estimate of it: {first_line(error)}") from error
            yield from pool.map(lambda point: _trial(cycles, point, default), points)

    def reach(self, target: str) -> None:
        """Do nothing: there is no device."""


def _trial(cycles: Callable[[Decisions], float], point: Decisions, default: float) -> Trial:
    try:
        return Trial(point, cycles(point), default)
    except NoEstimateError as error:
        return Trial(point, None, None, f"no estimate: {error}")
    except Exception as error:
        return Trial(point, None, None, f"cannot be built: {first_line(error)}")


def _cycles(func: tirx.PrimFunc, target: Target, point: Decisions) -> float:
    machine = kernel_target(target)
    lowered = machine.lower(machine.schedule(func, point))
    if isinstance(machine, GpuTarget):
        return ptx.kernel_cycles(described(lowered, machine.traits), machine.traits)
    return kernel_cycles(lowered, target, machine.traits.cores)


def estimated_work(program: Program, target: Target) -> dict[str, float]:
    """Return the cycles of each kernel in a step by its FLOPs and bytes alone, for shares where nothing runs."""
    machine, costs = kernel_target(target), program.manifest["kernels"]
    found: dict[str, float] = {}
    for call, _ in kernel_calls(program.manifest["entries"]["train_step"]):
        cost = costs[call]
        cycles = max(cost["flops"] / (2 * machine.traits.peak), cost["bytes"] / (BYTES_A_CYCLE * machine.traits.cores))
        found[call] = found.get(call, 0.0) + cycles
    return found
