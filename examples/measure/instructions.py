"""A measure, `pock tune --measure instructions`: counts the instructions of a kernel's code, and runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tvm
from tvm import tirx
from tvm.target import Target

from pock_tvm.compiler.database import Trial
from pock_tvm.compiler.targets import kernel_target, resolve_target
from schedules.decisions import DEFAULTS, Decisions


class Instructions:
    """The shortest code wins: a poor measure of speed, and a short one to read."""

    def __init__(self, target: Target) -> None:
        pass

    def measure(self, definition: str, target: str, points: Sequence[Decisions]) -> Iterator[Trial]:
        """Yield a trial for each schedule; what is compared are ratios to the default's count."""
        func, machine = tvm.ir.load_json(definition), resolve_target(target)
        default = count(func, machine, DEFAULTS)
        for point in points:
            yield Trial(point, count(func, machine, point), default)


def count(func: tirx.PrimFunc, target: Target, decisions: Decisions) -> float:
    """Return the number of instructions of a schedule's code."""
    machine = kernel_target(target)
    module = tvm.get_global_func("target.build.llvm")(machine.lower(machine.schedule(func, decisions)), target)
    lines = module.inspect_source("asm").splitlines()
    return float(sum(line.startswith("\t") and not line.strip().startswith((".", "#", "//")) for line in lines))
