"""Marks the values whose scale a model states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..analysis.fixed_point import EightBits
from ..ir import Expr, assemble, bindings_of, substitute, update_function
from ..operators.quantized import stated_scale


@tvm.transform.module_pass(opt_level=0, name="MarkScales")
@dataclass(frozen=True)
class MarkScales:
    """Put ``pock.stated_scale`` behind values, which computes nothing: a scale outlives passes that move its value.

    In: any dataflow function. ``values``: scales by name of the value.
    """

    values: Mapping[str, EightBits]
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        env: dict[relax.Var, Expr] = {}
        bindings: list[relax.VarBinding] = []

        def mark(var: relax.Var) -> None:
            if var.name in self.values:
                env[var] = relax.DataflowVar(var.name, var.ty)
                bindings.append(relax.VarBinding(env[var], stated_scale(var, **vars(self.values[var.name]))))

        for param in func.params:
            mark(param)
        for binding in bindings_of(func):
            bindings.append(relax.VarBinding(binding.var, substitute(binding.value, env)))
            mark(binding.var)
        marked = assemble(func.params, bindings, substitute(func.body.body, env), func.attrs)
        return update_function(mod, self.function, marked)
