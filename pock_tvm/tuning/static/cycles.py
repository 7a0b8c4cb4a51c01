"""Cycles of a CPU's kernel: what a model of its core says of each loop's code, times how often that runs.

LLVM's IR says how often loops run, and the assembly of the same function has the same loops in the same order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import tvm
import tvm_ffi
from tvm import IRModule, tirx
from tvm.target import Target

from . import mca, packets
from .hexagon_walk import packets_run
from .loops import Loop, NoEstimateError, functions_of, loops_of
from .trips import Values, first_iteration, trips


def kernel_cycles(lowered: IRModule, target: Target, cores: int) -> float:
    """Return the cycles of a lowered kernel on the model of the target's core, the longest of ``cores`` that share its
    parallel loops. For Hexagon: packets, of a walk through the code if no branch depends on data.

    Raises
    ------
    NoEstimateError
        The code does not say how often a loop runs, or the model does not know an instruction.
    """
    module = tvm.get_global_func("target.build.llvm")(_first_share(lowered, cores), target)
    functions = functions_of(module.inspect_source("ll"))
    model = packets if packets.is_hexagon(target) else mca
    assembly = model.code_of(module.inspect_source("asm"), [function.name for function in functions])
    if model is packets:
        with contextlib.suppress(NoEstimateError):
            return sum(packets_run(assembly[str(func.attrs["global_symbol"])]) for func in lowered.functions.values())
    regions: list[tuple[float, list[str]]] = []
    for function in functions:
        blocks = assembly[function.name]
        loops = loops_of(model.graph_of(blocks))
        inside = {label for loop in loops for label in loop.blocks}
        counted = [(1.0, set(blocks) - inside)]
        pairs = _paired(loops_of(function.graph), loops)
        counted += [(times, loop.own) for times, loop in _walk(pairs, Values(function, {}))]
        for times, labels in counted:
            lines = [line for label in blocks if label in labels for line in blocks[label]]
            regions += [(times, lines)] if lines else []
    cycles = model.region_cycles([lines for _, lines in regions], target)
    return sum(times * each for (times, _), each in zip(regions, cycles, strict=True))


Pairs = list[tuple[Loop, Loop]]


def _paired(own: Sequence[Loop], other: Sequence[Loop]) -> Pairs:
    if len(own) != len(other):
        raise NoEstimateError("its assembly has other loops than its IR")
    return list(zip(own, other, strict=True))


def _walk(pairs: Pairs, around: Values, times: float = 1.0) -> Iterator[tuple[float, Loop]]:
    """Yield the loops of the assembly, and how often each one's body runs. Of loops whose bounds depend on a counter
    around them, the first time counts for all."""
    for own, other in pairs:
        count = trips(own, around)
        if count is None:
            raise NoEstimateError(f"how often the loop '{own.header}' runs is not known")
        yield times * count, other
        yield from _walk(_paired(own.inner, other.inner), first_iteration(own, around), times * count)


def _first_share(lowered: IRModule, cores: int) -> IRModule:
    """Leave of parallel loops what the first of some cores does of them. So their bounds are constants of the code."""

    def shared(loop: tirx.For) -> tirx.For:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        if not isinstance(loop.extent, tirx.IntImm):
            raise NoEstimateError("the extent of a parallel loop is not constant")
        share = tirx.const(math.ceil(int(loop.extent) / cores), loop.extent.ty.dtype)
        return tirx.For(loop.loop_var, loop.min, share, tirx.ForKind.SERIAL, loop.body)

    return IRModule(
        {
            name: func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, shared)))
            for name, func in lowered.functions.items()
        }
    )
