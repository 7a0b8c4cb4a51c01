"""Keeps one copy of each frozen weight, whatever the layouts that its products read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from schedules.extents import divisors

from ..ir import Expr, bindings_of, eliminate_dead, op_name, rewrite, shape_of, substitute, update_function, used_vars
from ..ir.order import Order, original, permuted, transpose_between
from ..operators.registry import attributes_of, plain
from ..operators.training import (
    conv2d_data_gradient,
    matmul,
    packed_matmul,
    relayout,
    strips_matmul,
    winograd_weight,
)
from .straighten_products import VECTOR, turning_pays

ACROSS = (0, 1, 3, 2)
"""Permutation of a weight [R, S, C_in, C_out] in which a dense data gradient reads it."""


@dataclass(frozen=True)
class _Source:
    """What layouts are of: a frozen parameter, or the Winograd transform of a weight."""

    param: str
    transformed: tuple[Order, tuple[int, ...]] | None = None
    """Of a transform the order and the shape of the weight that it transforms."""


@dataclass(frozen=True)
class _Layout:
    """Order in which a value has the elements of its source."""

    source: _Source
    order: Order


@tvm.transform.module_pass(opt_level=0, name="ShareFrozen")
@dataclass(frozen=True)
class ShareFrozen:
    """Let all products with a frozen weight read one copy of it.

    In: dataflow functions, weights packed, before :class:`ChooseKernels`. Out: where ``functions`` read a parameter in
    ``frozen``, or its Winograd transform, in several layouts, the first layout of the first function is kept
    (:class:`LiftFrozen` prepares it). The others are made from it when they are read, by one transpose
    (``pock.relayout``) into a temporary. A data gradient reads its weight across: the transpose takes one pass over the
    weight, and the product one for every few rows.
    """

    frozen: Sequence[str]
    functions: Sequence[str]

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        kept: dict[_Source, Order] = {}
        shared: set[_Source] = set()
        for name in self.functions:
            for layout in _read(mod[name], self.frozen):
                if kept.setdefault(layout.source, layout.order) != layout.order:
                    shared.add(layout.source)
        orders = {source: kept[source] for source in shared}
        for name in self.functions:
            mod = update_function(mod, name, _Sharing(mod[name], self.frozen, orders).rewritten())
        return mod


def tables_of(func: relax.Function, names: Sequence[str]) -> set[str]:
    """Return the parameters among ``names`` of which a function looks up rows, as of an embedding.

    A table that is also a product's weight (tied to a head) stays as it is: a look-up reads a few rows of it, and would
    otherwise need all of them moved.
    """
    read = {
        value.args[0] for value in (binding.value for binding in bindings_of(func)) if op_name(value) == "relax.take"
    }
    return {param.name for param in func.params if param in read} & set(names)


def _frozen_params(func: relax.Function, frozen: Sequence[str]) -> dict[relax.Var, _Layout]:
    """Return the layouts of the frozen parameters: as they are."""
    names = set(frozen)
    return {
        param: _Layout(_Source(param.name), original(math.prod(shape_of(param))))
        for param in func.params
        if param.name in names
    }


def _moved(value: Expr, known: Mapping[relax.Var, _Layout]) -> _Layout | None:
    """Return the layout of a value that only moves or transforms one of a known layout."""
    if isinstance(value, relax.Var):
        return known.get(value)
    name = op_name(value)
    if name not in ("relax.reshape", "relax.permute_dims", "pock.winograd_weight") or value.args[0] not in known:
        return None
    layout, shape = known[value.args[0]], shape_of(value.args[0])
    if name == "relax.reshape":
        return layout
    if name == "relax.permute_dims":
        axes = plain(value.attrs.axes) or tuple(reversed(range(len(shape))))
        order = permuted(layout.order, shape, axes)
        return None if order is None else _Layout(layout.source, order)
    if layout.source.transformed is not None:
        return None
    *_, inputs, outputs = shape
    positions, width = math.prod(shape_of(value)) // (inputs * outputs), attributes_of(value).get("width")
    order = original(positions * inputs * outputs)
    if width:
        order = permuted(order, (positions, inputs, outputs // width, width), (0, 2, 1, 3)) or order
    return _Layout(_Source(layout.source.param, (layout.order, shape)), order)


def _read(func: relax.Function, frozen: Sequence[str]) -> Iterator[_Layout]:
    """Yield the layouts in which a function reads frozen weights."""
    layouts = _frozen_params(func, frozen)
    for binding in bindings_of(func):
        layout = _moved(binding.value, layouts)
        if layout is not None:
            layouts[binding.var] = layout
            continue
        for var in used_vars(binding.value):
            if var in layouts:
                yield _as_read(binding.value, var, layouts[var])


def _as_read(value: Expr, var: relax.Var, layout: _Layout) -> _Layout:
    """Return the layout in which a call reads an operand: a data gradient will transpose its weight."""
    if _transposes_weight(value) and var.same_as(value.args[1]):
        order = permuted(layout.order, shape_of(var), ACROSS)
        return layout if order is None else _Layout(layout.source, order)
    return layout


def _transposes_weight(value: Expr) -> bool:
    if op_name(value) != "pock.conv2d_data_gradient":
        return False
    attributes = attributes_of(value)
    return attributes["groups"] == 1 and not attributes.get("transposed", False)


class _Sharing:
    """Rewriter of one function. ``orders`` are those of the sources that are kept once."""

    def __init__(self, func: relax.Function, frozen: Sequence[str], orders: Mapping[_Source, Order]) -> None:
        self.func, self.orders = func, orders
        self.layouts = _frozen_params(func, frozen)
        """Layouts of the new function's values."""
        self.kept: dict[_Source, Expr] = {}
        """Flat values in the orders that are kept."""

    def rewritten(self) -> relax.Function:
        """Return the function with every layout made from the one that is kept."""
        return eliminate_dead(rewrite(self.func, self._visit))

    def _visit(self, builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
        layout = _moved(value, self.layouts)
        if layout is not None:
            new = builder.emit(value, var.name)
            self.layouts[new] = layout
            return new
        shared = [each for each in used_vars(value) if each in self.layouts and self._is_shared(each)]
        if not shared:
            return value
        if _is_straight(value) and value.args[1] in shared:
            for way in (self._along, self._across):
                product = way(builder, value)
                if product is not None:
                    return product
        if _transposes_weight(value) and value.args[1] in shared:
            layout = _as_read(value, value.args[1], self.layouts[value.args[1]])
            weight = self._made(builder, layout, [shape_of(value.args[1])[axis] for axis in ACROSS])
            if weight is None:
                return value
            return conv2d_data_gradient(value.args[0], weight, **attributes_of(value), transposed=True)
        made = {each: self._made(builder, self.layouts[each], shape_of(each)) for each in shared}
        return substitute(value, {var: new for var, new in made.items() if new is not None})

    def _is_shared(self, var: relax.Var) -> bool:
        return self.layouts[var].source in self.orders

    def _made(self, builder: relax.BlockBuilder, layout: _Layout, shape: Sequence[int]) -> Expr | None:
        """Make a layout from the kept one; None if no transpose leads there."""
        kept = self._kept(builder, layout.source)
        if layout.order == self.orders[layout.source]:
            return builder.emit(R.reshape(kept, shape))
        way = transpose_between(self.orders[layout.source], layout.order)
        if way is None:
            return None
        return builder.emit(
            R.reshape(builder.emit(relayout(builder.emit(R.reshape(kept, way[0])), axes=way[1])), shape)
        )

    def _along(self, builder: relax.BlockBuilder, product: relax.Call) -> Expr | None:
        """Return a product with the kept copy if that is the weight in strips, of whatever width."""
        matrix = _Matrix.of(product, self.layouts[product.args[1]].order)
        width = 0 if matrix is None else matrix.width_in(self._order_of(product))
        if matrix is None or width < VECTOR:
            return None
        *_, reduced, columns = matrix.shape
        shape = (*matrix.shape[:-2], columns // width, reduced, width)
        return packed_matmul(product.args[0], builder.emit(R.reshape(self._kept_of(builder, product), shape)))

    def _across(self, builder: relax.BlockBuilder, product: relax.Call) -> Expr | None:
        """Return a product, by that of both transposed, if the kept copy is the weight's transpose.

        ``Y^T = W^T X^T`` reads single elements of W, in any order. None where transposing W is cheaper.
        """
        x, weight = product.args
        matrix = _Matrix.of(product, self.layouts[weight].order)
        across = None if matrix is None else matrix.transposed()
        if across is None:
            return None
        *outer, columns, reduced = across.shape
        rows = shape_of(x)[-2] if outer else math.prod(shape_of(x)[:-1])
        width = across.width_in(self._order_of(product))
        is_plain = across.order == self._order_of(product)
        if not (width or is_plain) or not turning_pays(rows, reduced, columns):
            return None
        flat = builder.emit(R.reshape(x, (*outer, rows, reduced)))
        turned, kept = builder.emit(R.permute_dims(flat, _last_two(len(outer)))), self._kept_of(builder, product)
        if is_plain:
            a = builder.emit(R.reshape(kept, across.shape))
            result = builder.emit(matmul(a, turned, transpose_a=False, transpose_b=False))
        else:
            strips = builder.emit(R.reshape(kept, (*outer, reduced // width, columns, width)))
            result = builder.emit(strips_matmul(strips, turned))
        return R.reshape(builder.emit(R.permute_dims(result, _last_two(len(outer)))), shape_of(product))

    def _order_of(self, product: relax.Call) -> Order:
        return self.orders[self.layouts[product.args[1]].source]

    def _kept_of(self, builder: relax.BlockBuilder, product: relax.Call) -> Expr:
        return self._kept(builder, self.layouts[product.args[1]].source)

    def _kept(self, builder: relax.BlockBuilder, source: _Source) -> Expr:
        """Return the flat value that is kept, made from the parameter in the same way in every function."""
        if source not in self.kept:
            value: Expr = next(param for param in self.func.params if param.name == source.param)
            size = math.prod(shape_of(value))
            if source.transformed is not None:
                order, shape = source.transformed
                weight = builder.emit(R.reshape(_prepared(builder, value, size, order), shape))
                value = builder.emit(winograd_weight(weight))
                size = math.prod(shape_of(value))
            self.kept[source] = _prepared(builder, value, size, self.orders[source])
        return self.kept[source]


@dataclass(frozen=True)
class _Matrix:
    """A matrix, or one for each element of a batch: its shape [.., rows, columns] and order."""

    shape: tuple[int, ...]
    order: Order

    @classmethod
    def of(cls, product: relax.Call, order: Order) -> _Matrix | None:
        """Return the second operand, of an order, of a product."""
        shape = shape_of(product.args[1])
        if op_name(product) == "pock.matmul":
            return cls(shape, order)
        *outer, count, rows, width = shape
        found = permuted(order, shape, [*range(len(outer)), len(outer) + 1, len(outer), len(outer) + 2])
        return None if found is None else cls((*outer, rows, count * width), found)

    def width_in(self, order: Order) -> int:
        """Return the width of the strips of its columns that have an order; 0 if there are none."""
        *outer, rows, columns = self.shape
        for width in divisors(columns):
            axes = [*range(len(outer)), len(outer) + 1, len(outer), len(outer) + 2]
            if width < columns and permuted(self.order, (*outer, rows, columns // width, width), axes) == order:
                return width
        return 0

    def transposed(self) -> _Matrix | None:
        """Return the transposed matrix."""
        *outer, rows, columns = self.shape
        order = permuted(self.order, self.shape, _last_two(len(outer)))
        return None if order is None else _Matrix((*outer, columns, rows), order)


def _last_two(before: int) -> list[int]:
    """Return the permutation that swaps the last two axes, behind ``before`` others."""
    return [*range(before), before + 1, before]


def _is_straight(value: Expr) -> bool:
    """Return whether a value is a product of matrices as they are."""
    if op_name(value) == "pock.packed_matmul":
        return True
    return op_name(value) == "pock.matmul" and not (value.attrs["transpose_a"] or value.attrs["transpose_b"])


def _prepared(builder: relax.BlockBuilder, value: Expr, size: int, order: Order) -> Expr:
    """Bring a value into an order: a flat value, which :class:`LiftFrozen` computes once."""
    way = transpose_between(original(size), order)
    if way is None or order == original(size):
        return builder.emit(R.reshape(value, (size,)))
    moved = builder.emit(R.permute_dims(builder.emit(R.reshape(value, way[0])), way[1]))
    return builder.emit(R.reshape(moved, (size,)))
