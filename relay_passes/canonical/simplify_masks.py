"""Removes masks that hide nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Expr, constant_value, eliminate_dead, made_by, op_name, rewrite, shape_of, update_function


@tvm.transform.module_pass(opt_level=0, name="SimplifyMasks")
@dataclass(frozen=True)
class SimplifyMasks:
    """Remove ``where``, ``add`` and ``logical_and`` whose constant mask changes nothing.

    In, out: a dataflow function. ``where(True, x, y)`` is x, ``x + 0`` is x, and ``x & True`` is x. Zeroing a softmax
    at masked positions is removed unless the mask hides a whole row: elsewhere the softmax is zero there already. A
    mask that is repeated is read as it was before.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        made: dict[relax.Var, relax.Call] = {}

        def mask_of(expr: Expr) -> np.ndarray | None:
            """The value of a constant, or of one that is broadcast."""
            while op_name(value := made_by(made, expr)) == "relax.broadcast_to":
                expr = value.args[0]
            return constant_value(expr)

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if op_name(value) == "relax.logical_and":
                for x, other in (value.args, reversed(list(value.args))):
                    mask = mask_of(other)
                    if mask is not None and mask.all():
                        return x if shape_of(x) == shape_of(var) else R.broadcast_to(x, shape_of(var))
            if op_name(value) in ("relax.where", "relax.add"):
                value = _unrepeated(value, made)
            if op_name(value) == "relax.where":
                mask = mask_of(value.args[0])
                kept = value.args[1] if mask is not None and mask.all() else None
                if kept is None:
                    kept = _unmasked_softmax(value, mask, made)
                if kept is not None and shape_of(kept) == shape_of(var):
                    return kept
            if op_name(value) == "relax.add":
                for x, zero in (value.args, reversed(list(value.args))):
                    addend = mask_of(zero)
                    if (
                        addend is not None
                        and not addend.any()
                        and isinstance(x, relax.Var)
                        and shape_of(x) == shape_of(var)
                    ):
                        return x
            return value

        return update_function(mod, self.function, eliminate_dead(rewrite(mod[self.function], visit, made=made)))


def _unrepeated(value: relax.Call, made: dict[relax.Var, Expr]) -> relax.Call:
    """Let a call read what an operand repeats, where another operand gives the result its shape."""
    args = list(value.args)
    for index, arg in enumerate(args):
        repeated = made_by(made, arg)
        if op_name(repeated) == "relax.broadcast_to":
            args[index] = repeated.args[0]
            if np.broadcast_shapes(*map(shape_of, args)) != shape_of(value):
                args[index] = arg
    return relax.Call(value.op, args, value.attrs, value.ty_args, ret_ty=value.ty)


def _unmasked_softmax(value: relax.Call, mask: np.ndarray | None, made: dict[relax.Var, Expr]) -> Expr | None:
    """The softmax inside ``where(mask, softmax(where(mask, x, lowest)), 0)``, if the mask hides no whole row."""
    softmax = made_by(made, value.args[1])
    zero = constant_value(value.args[2])
    if mask is None or op_name(softmax) != "relax.nn.softmax" or zero is None or zero.any():
        return None
    scores = made_by(made, softmax.args[0])
    if op_name(scores) != "relax.where":
        return None
    inner = constant_value(scores.args[0])
    same_mask = scores.args[0].same_as(value.args[0]) or (inner is not None and np.array_equal(inner, mask))
    is_last_axis = int(softmax.attrs.axis) in (-1, len(shape_of(softmax)) - 1)
    return value.args[1] if same_mask and is_last_axis and mask.any(axis=-1).all() else None
