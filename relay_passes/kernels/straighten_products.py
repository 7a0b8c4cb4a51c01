"""Transposes operands of matrix products, so that kernels read contiguous columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Expr, bindings_of, constant_vars, eliminate_dead, op_name, rewrite, shape_of, update_function
from ..operators.training import matmul


@tvm.transform.module_pass(opt_level=0, name="StraightenProducts")
@dataclass(frozen=True)
class StraightenProducts:
    """Make the second operand of every ``pock.matmul`` untransposed.

    In, out: a dataflow function. The data gradient of a linear layer, ``dX = dY W^T``, reads the weight across its
    columns. A weight made only of ``frozen`` parameters is transposed, and :class:`LiftFrozen` hoists that. For a
    trained weight, transpose the weight every step, or dY and the result, ``dX^T = W dY^T``: whichever moves less data
    and keeps vectors whole.
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
            rows, columns, reduced = math.prod(shape_of(value)[:-1]), shape_of(value)[-1], shape_of(b)[-1]
            is_linear = len(shape_of(b)) == 2 and not value.attrs["transpose_a"]
            if is_linear and var not in fixed and turning_pays(rows, reduced, columns):
                flat = builder.emit(R.reshape(a, (rows, reduced)))
                return turned_product(builder, flat, lambda x: matmul(b, x, **STRAIGHT), shape_of(value))
            straight = _transposed(builder, b)
            return matmul(a, straight, transpose_a=bool(value.attrs["transpose_a"]), transpose_b=False)

        return update_function(mod, self.function, eliminate_dead(rewrite(func, visit)))


VECTOR = 16
"""Elements that fill whole vectors on every target. The rows of dY become columns when transposed: there must be a
multiple of this, or fewer."""


STRAIGHT = {"transpose_a": False, "transpose_b": False}
"""Attributes of a product of matrices as they are."""


def turned_product(
    builder: relax.BlockBuilder, x: Expr, product: Callable[[Expr], Expr], shape: Sequence[int]
) -> relax.Call:
    """Compute ``Y = X W`` as ``Y^T = W^T X^T``, which reads single elements of W, in any order.

    ``product`` multiplies W^T by its operand. Y gets the ``shape``.
    """
    result = builder.emit(product(_transposed(builder, x)))
    return R.reshape(_transposed(builder, result), shape)


def turning_pays(rows: int, reduced: int, columns: int) -> bool:
    """Return whether transposing X and the result of ``X W``, [rows, reduced] by [reduced, columns], is cheaper than
    transposing W, and keeps vectors whole."""
    return rows * (columns + reduced) < columns * reduced and (rows % VECTOR == 0 or rows < VECTOR)


def _reads_frozen(value: Expr, constant: set[relax.Var]) -> bool:
    """Return whether ``value`` is a product whose second operand is constant."""
    if op_name(value) != "pock.matmul":
        return False
    return not isinstance(value.args[1], relax.Var) or value.args[1] in constant


def _transposed(builder: relax.BlockBuilder, x: Expr) -> Expr:
    rank = len(shape_of(x))
    return builder.emit(R.permute_dims(x, [*range(rank - 2), rank - 1, rank - 2]))
