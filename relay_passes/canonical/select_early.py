"""Computes only those positions of an activation that are read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..analysis.access import Reads, Selection, reads
from ..ir import (
    Expr,
    bindings_of,
    constant_value,
    constant_vars,
    is_kept,
    op_name,
    operands,
    rewrite,
    shape_of,
    slice_bounds,
    update_function,
    used_vars,
)
from ..operators.record import Kind, kind_of


@tvm.transform.module_pass(opt_level=0, name="SelectEarly")
@dataclass(frozen=True)
class SelectEarly:
    """Hoist selections along an axis above operators that treat the positions of that axis independently.

    In, out: a dataflow function. A classifier that reads the first token of the last block needs that block's queries,
    feed-forward layers and norms for this token alone, and keys and values for all. The other tokens are then neither
    computed nor differentiated. A value is narrowed where all its readers select the same positions. Values computed
    from the ``trained`` parameters alone stay whole, so that gradients are those of whole layers.
    """

    trained: Collection[str] = ()
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        values = {binding.var: binding.value for binding in bindings_of(func)}
        narrowed, demanded = _plan(func, constant_vars(func, self.trained) - constant_vars(func, ()))
        selected: dict[tuple[relax.Var, Selection], relax.Var] = {}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if var not in demanded:
                return value
            args = list(value.args)
            for index, (arg, selection) in enumerate(zip(values[var].args, demanded[var], strict=True)):
                if selection is None or arg in narrowed:
                    continue
                key = (args[index], selection)
                if key not in selected:
                    selected[key] = builder.emit(selection.taken(args[index]))
                args[index] = selected[key]
            if var not in narrowed:  # the selection itself: its operand is narrow, only a dropped axis remains
                return args[0] if shape_of(args[0]) == shape_of(var) else R.reshape(args[0], shape_of(var))
            if kind_of(value) is Kind.RESHAPE:
                return R.reshape(args[0], narrowed[var].of(shape_of(var)))
            return relax.Call(value.op, args, value.attrs, value.ty_args)

        return update_function(mod, self.function, rewrite(func, visit) if narrowed else func)


def _plan(
    func: relax.Function, whole: Collection[relax.Var]
) -> tuple[dict[relax.Var, Selection], dict[relax.Var, Reads]]:
    """Find the values to narrow, each with the positions that all its readers select; and for these values and the
    selections themselves, the positions that they demand of each operand."""
    requested: dict[relax.Var, set[Selection | None]] = {var: {None} for var in used_vars(func.body.body)}
    narrowed: dict[relax.Var, Selection] = {}
    demanded: dict[relax.Var, Reads] = {}
    for binding in reversed(bindings_of(func)):
        var, value = binding.var, binding.value
        selection = next(iter(requested[var])) if len(requested.get(var, ())) == 1 and not is_kept(var) else None
        own = selection_of(value)
        needed = _reads(value, selection, whole) if selection is not None and own is None else None
        if selection is not None and needed is not None:
            narrowed[var], demanded[var] = selection, needed
        elif own is not None:
            demanded[var] = [own] + [None] * (len(value.args) - 1)
        for index, field, arg in operands(value):
            for used in [arg] if isinstance(arg, relax.Var) else used_vars(arg):
                requested.setdefault(used, set()).add(
                    demanded[var][index] if field is None and var in demanded else None
                )
    return narrowed, demanded


def _reads(value: Expr, selection: Selection, whole: Collection[relax.Var]) -> Reads | None:
    """The positions of each operand from which a call computes a selection of its result. None where that would narrow
    a tuple or a value of ``whole``."""
    operand_selections = reads(value, selection)
    if operand_selections is None or any(
        demand and (arg in whole or isinstance(arg, relax.Tuple))
        for demand, arg in zip(operand_selections, value.args, strict=True)
    ):
        return None
    return operand_selections


def selection_of(value: Expr) -> Selection | None:
    """The selection that a call performs: a constant index, or a slice of stride 1 along one axis; None otherwise."""
    if op_name(value) == "relax.take" and value.attrs.axis is not None:
        index = constant_value(value.args[1])
        rank = len(shape_of(value.args[0]))
        if index is None or index.size != 1:
            return None
        axis, first = int(value.attrs.axis) % rank, int(index.reshape(()))
        extent = shape_of(value.args[0])[axis]
        first += extent if first < 0 else 0
        return Selection(axis, first, first + 1) if 0 <= first < extent else None
    if op_name(value) != "relax.strided_slice":
        return None
    shape, taken = shape_of(value.args[0]), shape_of(value)
    axes, begins, _, strides = slice_bounds(value.args)
    if any(stride != 1 for stride in strides):
        return None
    cut = [(axis % len(shape), begin) for axis, begin in zip(axes, begins, strict=True)]
    cut = [(axis, begin) for axis, begin in cut if taken[axis] != shape[axis]]
    if len(cut) != 1:
        return None
    axis, first = cut[0]
    first = min(max(first + shape[axis] if first < 0 else first, 0), shape[axis])
    return Selection(axis, first, first + taken[axis])
