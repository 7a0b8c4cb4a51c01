"""Evaluates a function of a model on this machine, in the kernels of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tvm import IRModule, relax, tirx

from relay_passes import (
    ChooseKernels,
    FuseGroups,
    ListCalls,
    LowerToExecutor,
    NameKernels,
    PlanArena,
    ReserveScratch,
)
from relay_passes.analysis.verify import only_kernels
from relay_passes.ir import assemble, bindings_of, eliminate_dead
from relay_passes.ir.places import grouped_names, kernel_places
from relay_passes.memory.call_list import call_list_of

from ..device.memory import aligned, aligned_copy
from ..device.runtime import load_library
from .build import build_library
from .kernel_builder import KernelBuilder
from .phases import Phases

MAIN = "evaluate"


class Evaluation:
    """Values of a dataflow function, compiled for this machine."""

    def __init__(self, func: relax.Function, values: Sequence[relax.Var], builder: KernelBuilder) -> None:
        shell = eliminate_dead(assemble(func.params, bindings_of(func), relax.Tuple(list(values)), func.attrs))
        phases = Phases(IRModule({MAIN: shell.with_attr("global_symbol", MAIN)}))
        target, clean = builder.kernel_target, [relax.transform.DeadCodeElimination([MAIN])]
        views = relax.transform.RewriteDataflowReshape()
        phases.run(6, "kernels", [ChooseKernels([MAIN], target), views], only_kernels)
        before = phases.mod
        phases.run(7, "grouped", [relax.transform.AnnotateTIROpPattern(), FuseGroups(target.traits.arguments)])
        names = grouped_names(before, phases.mod, [MAIN])
        phases.run(7, "fused", [relax.transform.FuseTIR(), *clean, views, NameKernels([MAIN])], only_kernels)
        places = kernel_places(phases.mod, names)
        kernels = [each for each in phases.mod.functions.values() if isinstance(each, tirx.PrimFunc)]
        scratch = builder.scratch(kernels, places)
        reserved = ReserveScratch([MAIN], scratch, target.traits.alignment)
        phases.run(8, "scratch", [reserved, PlanArena(MAIN), ListCalls(MAIN)])
        mod = phases.run(9, "executors", [LowerToExecutor(MAIN)])
        self.calls = call_list_of(mod[MAIN])
        library = build_library(mod, {MAIN: self.calls}, builder, places)
        self.library = load_library(library.code)

    def run(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the values. ``arrays`` holds the function's parameters by name, as they are stored."""
        results, memory = [], []
        for name, shape, dtype in self.calls.table:
            if name.startswith("result."):
                memory.append(aligned(shape, dtype))
                results.append(memory[-1])
            elif name in self.calls.constants:
                memory.append(aligned_copy(self.calls.constants[name].numpy()))
            else:
                memory.append(aligned_copy(np.asarray(arrays[name], dtype)))
        memory.append(aligned([self.calls.workspace.arena_bytes], "uint8"))
        self.library.run(MAIN, self.library.table([each.ctypes.data for each in memory]))
        return results
