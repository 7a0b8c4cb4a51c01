"""Places every temporary of a function in one arena."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule

from ..analysis.aliasing import Output
from ..analysis.live_ranges import Liveness
from ..ir import bindings_of, update_function
from .placement import lower_bound, place


@tvm.transform.module_pass(opt_level=0, name="PlanArena")
@dataclass(frozen=True)
class PlanArena:
    """Choose the offset of every temporary in one arena.

    In: a dataflow function of ``call_tir``, ``call_tir_inplace``, views and tuples, in execution order. Out: the same
    function with attributes, in bytes: ``arena_bytes`` (size), ``arena_lower_bound`` (smallest possible size),
    ``arena_offsets`` (the offsets of each binding's outputs, then of its scratch if it needs any), ``arena_map`` (name,
    offset, size, first binding and last binding of each temporary, then of each input that the arena holds). Views lie
    where :class:`Aliasing` places them. A result of the function has the offset -1: it is the caller's memory.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        liveness = Liveness(func)
        aliasing = liveness.aliasing
        plan = place(liveness.ranges())
        at = dict(zip(liveness.temporaries, plan.offsets, strict=False))
        scratch = dict(zip(liveness.scratch, plan.offsets[len(at) :], strict=False))

        def offset(output: Output) -> int:
            buffer, inside = aliasing.buffer_of(output)
            return at[buffer] + inside if buffer in at else -1

        attributes = {
            "arena_bytes": plan.size,
            "arena_lower_bound": lower_bound(plan.ranges),
            "arena_offsets": [
                [offset(output) for output in aliasing.outputs(each)] + ([scratch[step]] if step in scratch else [])
                for step, each in enumerate(bindings_of(func))
            ],
            "arena_map": [
                [live.name, offset, live.size, live.first, live.last]
                for live, offset in zip(plan.ranges, plan.offsets, strict=True)
            ],
        }
        return update_function(mod, self.function, func.with_attrs(attributes))
