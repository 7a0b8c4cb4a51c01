"""Computes the floats of integer weights where they are read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..ir import Expr, assemble, bindings_of, constant_vars, is_kept, substitute, update_function, used_vars


@tvm.transform.module_pass(opt_level=0, name="DequantizeAtUse")
@dataclass(frozen=True)
class DequantizeAtUse:
    """Compute what is made of integer parameters again before each call that reads it.

    In, out: a dataflow function. ``integers`` names parameters that stand for more bytes of floats, as quantised
    weights do; they are in ``frozen``, too. The floats of one layer then live only while a call reads them: the arena
    needs room for the largest, and :class:`LiftFrozen` has nothing to hoist.
    """

    integers: Collection[str]
    frozen: Collection[str]
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        made: dict[relax.Var, Expr] = {}  # of integers and other constants alone
        integers = {param for param in func.params if param.name in self.integers}
        constant = constant_vars(func, self.frozen)
        bindings: list[relax.VarBinding] = []

        def repeated(value: Expr) -> Expr:
            """Return a value whose operands are made before it."""
            new: dict[relax.Var, Expr] = {}
            for var in used_vars(value):
                if var in made and var not in new:
                    new[var] = relax.DataflowVar(var.name, var.ty)
                    bindings.append(relax.VarBinding(new[var], repeated(made[var])))
            return substitute(value, new) if new else value

        for binding in bindings_of(func):
            read = used_vars(binding.value)
            if binding.var in constant and any(var in integers or var in made for var in read):
                made[binding.var] = binding.value
            else:
                bindings.append(relax.VarBinding(binding.var, repeated(binding.value)))
        body = repeated(func.body.body)
        kept = [binding.var for binding in bindings if is_kept(binding.var)]
        return update_function(mod, self.function, assemble(func.params, bindings, body, func.attrs, kept))
