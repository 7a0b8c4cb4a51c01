"""Marks the kernels that write in place, for targets whose calls cannot end a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule

from schedules.kernels import GUARDED

from ..ir import bindings_of, op_name


@tvm.transform.module_pass(opt_level=0, name="GuardWrites")
@dataclass(frozen=True)
class GuardWrites:
    """Mark each kernel that ``functions`` call in place with the attribute ``schedules.kernels.GUARDED``.

    In, out: functions of ``call_tir`` and ``call_tir_inplace``. A step of a GPU is one submission: a failed check
    cannot end it. Instead it sets a flag, and marked kernels read that and write nothing.
    """

    functions: Sequence[str]

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        writing = {
            binding.value.args[0]
            for name in self.functions
            for binding in bindings_of(mod[name])
            if op_name(binding.value) == "relax.call_tir_inplace"
        }
        functions = {
            var: func.with_attr(GUARDED, True) if var in writing else func for var, func in mod.functions.items()
        }
        return IRModule(functions, attrs=mod.attrs)
