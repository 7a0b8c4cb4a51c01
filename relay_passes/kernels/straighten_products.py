"""Transposes operands of matrix products, so that kernels read contiguous columns."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Expr, bindings_of, constant_vars, eliminate_dead, op_name, rewrite, shape_of, update_function
from ..operators.training import across_matmul, matmul


@tvm.transform.module_pass(opt_level=0, name="StraightenProducts")
@dataclass(frozen=True)
class StraightenProducts:
    """Make the second operand of every ``pock.matmul`` untransposed.

    In, out: a dataflow function. The data gradient of a linear layer, ``dX = dY W^T``, reads the weight across its
    columns. A weight made only of ``frozen`` parameters is transposed, and :class:`LiftFrozen` hoists that. A trained
    one is read as it is: each task of ``pock.across_matmul`` turns its part in cache. The small matrices of a batch, as
    in attention, are transposed.
    """

    frozen: Collection[str] = ()
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        constant = constant_vars(func, self.frozen)
        fixed = {binding.var for binding in bindings_of(func) if _reads_frozen(binding.value, constant)}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if op_name(value) != "pock.matmul" or not value.attrs["transpose_b"]:
                return value
            a, b = value.args
            if len(shape_of(b)) == 2 and not value.attrs["transpose_a"] and var not in fixed:
                return across_matmul(a, builder.emit(R.reshape(b, (1, *shape_of(b)))))
            straight = _transposed(builder, b)
            return matmul(a, straight, transpose_a=bool(value.attrs["transpose_a"]), transpose_b=False)

        return update_function(mod, self.function, eliminate_dead(rewrite(func, visit)))


def _reads_frozen(value: Expr, constant: set[relax.Var]) -> bool:
    """Return whether ``value`` is a product whose second operand is constant."""
    if op_name(value) != "pock.matmul":
        return False
    return not isinstance(value.args[1], relax.Var) or value.args[1] in constant


def _transposed(builder: relax.BlockBuilder, x: Expr) -> Expr:
    rank = len(shape_of(x))
    return builder.emit(R.permute_dims(x, [*range(rank - 2), rank - 1, rank - 2]))
