"""Reserves arena memory for the buffers that kernels allocate themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..analysis.live_ranges import ALIGNED, ALIGNMENT, SCRATCH
from ..ir import update_function


@tvm.transform.module_pass(opt_level=0, name="ReserveScratch")
@dataclass(frozen=True)
class ReserveScratch:
    """Attach the bytes of scratch that each kernel needs to the functions that call it.

    In, out: dataflow functions of ``call_tir``. ``sizes`` maps kernels to bytes, as scheduling for a target found
    (:meth:`schedules.target.Target.scratch_bytes`); kernels that need none are left out. From then on scratch is a
    temporary that is in use during its call alone: :class:`Recompute` and :class:`PlanArena` count it, and
    :class:`ListCalls` passes its address as a kernel's last operand. Everything in the arena starts at a multiple of
    ``alignment`` bytes.
    """

    functions: Sequence[str]
    sizes: Mapping[str, int]
    alignment: int = ALIGNMENT

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        for name in self.functions:
            func = mod[name]
            if isinstance(func, relax.Function):
                mod = update_function(mod, name, func.with_attrs({SCRATCH: dict(self.sizes), ALIGNED: self.alignment}))
        return mod
