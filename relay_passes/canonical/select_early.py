"""Computes only the positions of an activation that anything reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..analysis.access import Demands, Selection, demands
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
    """Move selections along an axis up through everything that treats the positions of that axis apart.

    In, out: a dataflow function. A classifier that reads the first token of the last block needs that block's queries,
    feed-forward layers and norms for this token alone (and keys and values for all): what would be computed for the
    others, and their gradients, is not built. A value becomes narrower where all its readers select the same positions.
    Nothing is selected from what is made of the ``trained`` parameters alone: their gradients stay those of whole
    layers.
    """

    trained: Collection[str] = ()
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        values = {binding.var: binding.value for binding in bindings_of(func)}
        narrowed, read = _plan(func, constant_vars(func, self.trained) - constant_vars(func, ()))
        selected: dict[tuple[relax.Var, Selection], relax.Var] = {}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if var not in read:
                return value
            args = list(value.args)
            for index, (arg, selection) in enumerate(zip(values[var].args, read[var], strict=True)):
                if selection is None or arg in narrowed:
                    continue
                key = (args[index], selection)
                if key not in selected:
                    selected[key] = builder.emit(selection.taken(args[index]))
                args[index] = selected[key]
            if var not in narrowed:  # the selection itself: nothing is left of it but an axis that it drops
                return args[0] if shape_of(args[0]) == shape_of(var) else R.reshape(args[0], shape_of(var))
            if kind_of(value) is Kind.RESHAPE:
                return R.reshape(args[0], narrowed[var].of(shape_of(var)))
            return relax.Call(value.op, args, value.attrs, value.ty_args)

        return update_function(mod, self.function, rewrite(func, visit) if narrowed else func)


def _plan(
    func: relax.Function, whole: Collection[relax.Var]
) -> tuple[dict[relax.Var, Selection], dict[relax.Var, Demands]]:
    """The values of which all readers select the same positions, and which can be computed for these alone; and what
    they, and the selections, read."""
    wanted: dict[relax.Var, set[Selection | None]] = {var: {None} for var in used_vars(func.body.body)}
    narrowed: dict[relax.Var, Selection] = {}
    read: dict[relax.Var, Demands] = {}
    for binding in reversed(bindings_of(func)):
        var, value = binding.var, binding.value
        selection = next(iter(wanted[var])) if len(wanted.get(var, ())) == 1 and not is_kept(var) else None
        own = selection_of(value)
        needed = _demands(value, selection, whole) if selection is not None and own is None else None
        if selection is not None and needed is not None:
            narrowed[var], read[var] = selection, needed
        elif own is not None:
            read[var] = [own] + [None] * (len(value.args) - 1)
        for index, field, arg in operands(value):
            for used in [arg] if isinstance(arg, relax.Var) else used_vars(arg):
                wanted.setdefault(used, set()).add(read[var][index] if field is None and var in read else None)
    return narrowed, read


def _demands(value: Expr, selection: Selection, whole: Collection[relax.Var]) -> Demands | None:
    """What a call reads to compute a selection; None where it would select from several or from what is to stay
    whole."""
    found = demands(value, selection)
    if found is None or any(
        demand and (arg in whole or isinstance(arg, relax.Tuple)) for demand, arg in zip(found, value.args, strict=True)
    ):
        return None
    return found


def selection_of(value: Expr) -> Selection | None:
    """The selection that an operator is: an index, or a slice without steps along one axis."""
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
