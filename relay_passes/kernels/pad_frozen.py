"""Pads frozen weights to whole vectors before products in several directions read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from schedules.target import Target

from ..ir import (
    Expr,
    bindings_of,
    eliminate_dead,
    made_by,
    op_name,
    operands,
    rewrite,
    shape_of,
    update_function,
)
from ..operators.registry import plain


@tvm.transform.module_pass(opt_level=0, name="PadFrozen")
@dataclass(frozen=True)
class PadFrozen:
    """Pad a frozen matrix once for all its products, along each axis that is the columns of one.

    In, out: dataflow functions, before :class:`StraightenProducts`. A product whose result has no whole vectors pads
    its weight (:class:`ChooseKernels`): a padded copy beside the one that the data gradient reads. Here both read the
    padded one: results are cropped, and rows of zeros beyond the terms of a sum are not read. Concerns those of
    ``frozen`` that ``functions`` read in matrix products alone.
    """

    frozen: Collection[str]
    functions: Sequence[str]
    target: Target

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        columns: dict[str, set[int]] = defaultdict(set)
        excluded: set[str] = set()
        for name in self.functions:
            for weight, axis in _readings(mod[name], self.frozen):
                columns[weight.name].add(axis)
                excluded |= {weight.name} if axis == OTHER else set()
        for name in self.functions:
            widths = {
                param: self._widths(param, columns[param.name])
                for param in mod[name].params
                if param.name in columns.keys() - excluded
            }
            padded = {param: width for param, width in widths.items() if any(width)}
            mod = update_function(mod, name, _padded(mod[name], padded)) if padded else mod
        return mod

    def _widths(self, param: relax.Var, axes: Collection[int]) -> list[int]:
        """Return how many elements are missing at the end of each axis."""
        whole = self.target.layouts.padded_columns
        return [whole(extent) - extent if axis in axes else 0 for axis, extent in enumerate(shape_of(param))]


OTHER = -1
"""Axis of a reading that is no product's."""


def _view(expr: Expr, made: Mapping[relax.Var, Expr]) -> tuple[Expr, bool]:
    """Return what a matrix is, or is the transpose of, and whether it is that."""
    turned = False
    while op_name(call := made_by(made, expr)) == "relax.permute_dims" and len(shape_of(expr)) == 2:
        expr, turned = call.args[0], turned != (plain(call.attrs.axes) in (None, (1, 0)))
    return expr, turned


def _columns(product: relax.Call, turned: bool) -> int:
    """Return the axis of a weight that is the columns of a product's result."""
    return int(bool(product.attrs["transpose_b"]) == turned)


def _readings(func: relax.Function, frozen: Collection[str]) -> Iterator[tuple[relax.Var, int]]:
    """Yield each reading of a frozen matrix: the axis that is a product's columns, or :data:`OTHER`."""
    weights = {param for param in func.params if param.name in frozen and len(shape_of(param)) == 2}
    made = {binding.var: binding.value for binding in bindings_of(func)}
    for value in [*made.values(), func.body.body]:
        for position, _, operand in operands(value):
            weight, turned = _view(operand, made)
            if weight not in weights or op_name(value) == "relax.permute_dims":
                continue
            is_second = op_name(value) == "pock.matmul" and position == 1
            yield weight, _columns(value, turned) if is_second else OTHER


def _padded(func: relax.Function, widths: Mapping[relax.Var, Sequence[int]]) -> relax.Function:
    """Pad parameters at the end of each axis, and crop the products with them."""
    made: dict[relax.Var, relax.Call] = {}
    padded: dict[relax.Var, Expr] = {}

    def visit(builder: relax.BlockBuilder, _var: relax.Var, value: Expr) -> Expr:
        weight, turned = _view(value.args[1], made) if op_name(value) == "pock.matmul" else (None, False)
        if weight not in widths:
            return value
        if weight not in padded:
            down, right = widths[weight]
            padded[weight] = builder.emit(R.nn.pad(weight, [0, down, 0, right]))
        second = builder.emit(R.permute_dims(padded[weight], [1, 0])) if turned else padded[weight]
        product = relax.Call(value.op, [value.args[0], second], value.attrs)
        if not widths[weight][_columns(value, turned)]:
            return product
        *_, columns = shape_of(value)
        return R.strided_slice(builder.emit(product), [-1], [0], [columns])

    return eliminate_dead(rewrite(func, visit, made=made))
