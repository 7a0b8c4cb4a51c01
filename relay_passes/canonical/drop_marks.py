"""Drops the marks of values whose scale a model states."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..analysis.stated_scales import MARK
from ..ir import Expr, op_name, rewrite, update_function


@tvm.transform.module_pass(opt_level=0, name="DropMarks")
@dataclass(frozen=True)
class DropMarks:
    """Replace each ``pock.stated_scale`` by the value that it marks. In: any dataflow function."""

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        def visit(_builder: relax.BlockBuilder, _var: relax.Var, value: Expr) -> Expr:
            return value.args[0] if op_name(value) == MARK else value

        return update_function(mod, self.function, rewrite(mod[self.function], visit))
