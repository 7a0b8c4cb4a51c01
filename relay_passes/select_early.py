"""Computes only the positions of an activation that anything reads."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from .ir import (
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
from .operators.families import ELEMENTWISE, RESHAPES
from .operators.registry import plain


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
        narrowed, demands = _plan(func, constant_vars(func, self.trained) - constant_vars(func, ()))
        selected: dict[tuple[relax.Var, Selection], relax.Var] = {}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if var not in demands:
                return value
            args = list(value.args)
            for index, (arg, selection) in enumerate(zip(values[var].args, demands[var], strict=True)):
                if selection is None or arg in narrowed:
                    continue
                key = (args[index], selection)
                if key not in selected:
                    selected[key] = builder.emit(selection.taken(args[index]))
                args[index] = selected[key]
            if var not in narrowed:  # the selection itself: nothing is left of it but an axis that it drops
                return args[0] if shape_of(args[0]) == shape_of(var) else R.reshape(args[0], shape_of(var))
            if op_name(value) in RESHAPES:
                return R.reshape(args[0], narrowed[var].of(shape_of(var)))
            return relax.Call(value.op, args, value.attrs, value.ty_args)

        return update_function(mod, self.function, rewrite(func, visit) if narrowed else func)


@dataclass(frozen=True)
class Selection:
    """The positions ``first`` to ``end`` (not included) along an axis, counted from the front."""

    axis: int
    first: int
    end: int

    def along(self, axis: int) -> Selection:
        return Selection(axis, self.first, self.end)

    def taken(self, x: Expr) -> Expr:
        """What is selected of ``x``."""
        return R.strided_slice(x, [self.axis], [self.first], [self.end])

    def of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what is selected."""
        return (*shape[: self.axis], self.end - self.first, *shape[self.axis + 1 :])


Demands = list["Selection | None"]
"""What positions of each operand a call reads: None for all of them."""


def _plan(
    func: relax.Function, whole: Collection[relax.Var]
) -> tuple[dict[relax.Var, Selection], dict[relax.Var, Demands]]:
    """The values of which all readers select the same positions, and which can be computed for these alone; and what
    they, and the selections, read."""
    wanted: dict[relax.Var, set[Selection | None]] = {var: {None} for var in used_vars(func.body.body)}
    narrowed, demands = {}, {}
    for binding in reversed(bindings_of(func)):
        var, value = binding.var, binding.value
        selection = next(iter(wanted[var])) if len(wanted.get(var, ())) == 1 and not is_kept(var) else None
        own = selection_of(value)
        read = _demands(value, selection, whole) if selection is not None and own is None else None
        if selection is not None and read is not None:
            narrowed[var], demands[var] = selection, read
        elif own is not None:
            demands[var] = [own] + [None] * (len(value.args) - 1)
        for index, field, arg in operands(value):
            for used in [arg] if isinstance(arg, relax.Var) else used_vars(arg):
                wanted.setdefault(used, set()).add(demands[var][index] if field is None and var in demands else None)
    return narrowed, demands


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


def _demands(value: Expr, selection: Selection, whole: Collection[relax.Var]) -> Demands | None:
    """What a call reads to compute a selection of its result; None where it does not treat the positions apart."""
    if not isinstance(value, relax.Call):
        return None
    name, shape = op_name(value), shape_of(value) if isinstance(value.ty, relax.TensorType) else ()
    found: Demands | None = None
    if name in ELEMENTWISE or name in ("pock.normalize", "relax.nn.softmax", "relax.nn.log_softmax"):
        if name in ELEMENTWISE or selection.axis not in _shared_axes(value, len(shape)):
            found = [_broadcast(arg, selection, len(shape)) for arg in value.args]
    elif name == "pock.matmul":
        found = _of_product(value, selection, len(shape))
    elif name == "relax.permute_dims":
        axes = plain(value.attrs.axes) or tuple(reversed(range(len(shape))))
        found = [selection.along(axes[selection.axis] % len(shape))]
    elif name in RESHAPES:
        axis = _same_axis(shape_of(value.args[0]), shape, selection.axis)
        found = None if axis is None else [selection.along(axis)] + [None] * (len(value.args) - 1)
    if found is None or any(demand and arg in whole for demand, arg in zip(found, value.args, strict=True)):
        return None
    return found


def _shared_axes(call: relax.Call, rank: int) -> list[int]:
    """The axes along which positions of the result depend on each other."""
    axes = plain(call.attrs["axes"]) if op_name(call) == "pock.normalize" else [int(call.attrs.axis)]
    return [axis % rank for axis in axes]


def _broadcast(arg: Expr, selection: Selection, rank: int) -> Selection | None:
    """A selection of the result as one of an operand that may be broadcast to it."""
    if not isinstance(arg.ty, relax.TensorType):
        return None
    shape = shape_of(arg)
    axis = selection.axis - (rank - len(shape))
    return selection.along(axis) if axis >= 0 and shape[axis] != 1 else None


def _of_product(call: relax.Call, selection: Selection, rank: int) -> Demands:
    """Rows are those of the first operand, columns those of the second; the axes before them are those of both."""
    demands: Demands = []
    for index, arg in enumerate(call.args):
        if selection.axis < rank - 2:
            demands.append(_broadcast(arg, selection, rank))
        elif selection.axis == rank - 2 + index:
            transposed = bool(call.attrs["transpose_b" if index else "transpose_a"])
            demands.append(selection.along(len(shape_of(arg)) - 2 + (index ^ transposed)))
        else:
            demands.append(None)
    return demands


def _same_axis(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """The axis of a reshape's operand that the reshape leaves as it is, as axis ``axis`` of its result."""
    outer = math.prod(after[:axis])
    for index, extent in enumerate(before):
        if math.prod(before[:index]) == outer and extent == after[axis]:
            return index
    return None
