"""Keeps one copy of each frozen weight, whatever the layouts that its products read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from schedules.extents import divisors

from ..ir import (
    Constant,
    Expr,
    bindings_of,
    eliminate_dead,
    op_name,
    operands,
    rewrite,
    shape_of,
    substitute,
    update_function,
    used_vars,
)
from ..ir.order import Order, original, permuted, transpose_between
from ..operators.registry import attributes_of, plain
from ..operators.training import (
    across_matmul,
    conv2d_data_gradient,
    packed_matmul,
    relayout,
    winograd_weight,
)
from .straighten_products import VECTOR

ACROSS = (0, 1, 3, 2)
"""Permutation of a weight [R, S, C_in, C_out] in which a dense data gradient reads it."""


@dataclass(frozen=True)
class _Layout:
    """Order in which a value has the elements of its source: a value computed from frozen parameters alone."""

    source: str
    """Digest of the computation: the same in every function."""
    order: Order


@tvm.transform.module_pass(opt_level=0, name="ShareFrozen")
@dataclass(frozen=True)
class ShareFrozen:
    """Let all products with a frozen weight read one copy of it.

    In: dataflow functions, weights packed, before :class:`ChooseKernels`. Out: where ``functions`` read a parameter in
    ``frozen``, or its Winograd transform, in several layouts, the first layout of the first function is kept
    (:class:`LiftFrozen` prepares it). A matrix product reads it across (``pock.across_matmul``). Any other call reads a
    temporary, made by one transpose (``pock.relayout``) each time: one pass over the weight, where the call takes one
    for every few rows.
    """

    frozen: Sequence[str]
    functions: Sequence[str]

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        kept: dict[str, Order] = {}
        shared: set[str] = set()
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


class _Layouts:
    """Layouts of the values that a function computes from frozen parameters alone."""

    def __init__(self, func: relax.Function, frozen: Sequence[str]) -> None:
        names = set(frozen)
        self.known: dict[relax.Var, _Layout] = {}
        self.sources: dict[str, Expr] = {}
        """Value of each source; of a Winograd transform the weight that it transforms."""
        self.transforms: set[str] = set()
        for param in func.params:
            if param.name in names:
                self._begin(param, param.name)

    def add(self, var: relax.Var, value: Expr) -> None:
        """Take note of a binding."""
        if isinstance(value, relax.Var) and value in self.known:
            self.known[var] = self.known[value]
        if not self.is_constant(value):
            return
        name = op_name(value)
        layout = self.known.get(value.args[0]) if isinstance(value.args[0], relax.Var) else None
        if layout is not None and name == "relax.reshape":
            self.known[var] = layout
        elif layout is not None and name == "relax.permute_dims":
            shape = shape_of(value.args[0])
            order = permuted(layout.order, shape, plain(value.attrs.axes) or tuple(reversed(range(len(shape)))))
            if order is None:
                self._begin(var, self._digest(value))
            else:
                self.known[var] = replace(layout, order=order)
        elif layout is not None and name == "pock.winograd_weight":
            self._transform(var, value)
        else:
            self._begin(var, self._digest(value))

    def is_constant(self, value: Expr) -> bool:
        """Return whether a call computes a tensor from frozen parameters alone."""
        read = used_vars(value)
        is_tensor = isinstance(value, relax.Call) and isinstance(value.ty, relax.TensorType)
        return is_tensor and bool(read) and all(var in self.known for var in read)

    def _begin(self, var: relax.Var, source: str) -> None:
        self.known[var] = _Layout(source, original(math.prod(shape_of(var))))
        self.sources[source] = var

    def _transform(self, var: relax.Var, value: relax.Call) -> None:
        """Take note of a Winograd transform, in strips or not: both are one source."""
        weight, width = value.args[0], attributes_of(value).get("width")
        *_, inputs, outputs = shape_of(weight)
        positions = math.prod(shape_of(value)) // (inputs * outputs)
        source = self._digest(winograd_weight(weight))
        order = original(positions * inputs * outputs)
        if width:
            order = permuted(order, (positions, inputs, outputs // width, width), (0, 2, 1, 3)) or order
        self.known[var] = _Layout(source, order)
        self.sources[source] = weight
        self.transforms.add(source)

    def _digest(self, value: relax.Call) -> str:
        content = hashlib.sha256(f"{op_name(value)} {value.attrs}".encode())
        for _, _, arg in operands(value):
            if isinstance(arg, relax.Var):
                content.update(f"{self.known[arg]} {shape_of(arg)}".encode())
            elif isinstance(arg, Constant):
                content.update(str(arg.ty).encode() + arg.value.numpy().tobytes())
            else:
                content.update(str(arg).encode())
        return content.hexdigest()


def _read(func: relax.Function, frozen: Sequence[str]) -> Iterator[_Layout]:
    """Yield the layouts in which a function reads frozen weights."""
    layouts = _Layouts(func, frozen)
    for binding in bindings_of(func):
        layouts.add(binding.var, binding.value)
        if binding.var not in layouts.known:
            for var in used_vars(binding.value):
                if var in layouts.known:
                    yield _as_read(binding.value, var, layouts.known[var])


def _as_read(value: Expr, var: relax.Var, layout: _Layout) -> _Layout:
    """Return the layout in which a call reads an operand: a data gradient will transpose its weight."""
    is_across = _transposes_weight(value) and var.same_as(value.args[1])
    return (_turned(var, layout) if is_across else None) or layout


def _turned(weight: relax.Var, layout: _Layout) -> _Layout | None:
    """Return the layout of a convolution's weight that is read across; None if an axis cuts through a piece of it."""
    order = permuted(layout.order, shape_of(weight), ACROSS)
    return None if order is None else replace(layout, order=order)


def _transposes_weight(value: Expr) -> bool:
    if op_name(value) != "pock.conv2d_data_gradient":
        return False
    attributes = attributes_of(value)
    return attributes["groups"] == 1 and not attributes.get("transposed", False)


class _Sharing:
    """Rewriter of one function. ``orders`` are those of the sources that are kept once."""

    def __init__(self, func: relax.Function, frozen: Sequence[str], orders: Mapping[str, Order]) -> None:
        self.func, self.orders = func, orders
        self.layouts = _Layouts(func, frozen)
        """Layouts of the new function's values."""
        self.kept: dict[str, Expr] = {}
        """Flat values in the orders that are kept."""

    def rewritten(self) -> relax.Function:
        """Return the function with every layout made from the one that is kept."""
        return eliminate_dead(rewrite(self.func, self._visit))

    def _visit(self, builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
        if self.layouts.is_constant(value):
            new = builder.emit(value, var.name)
            self.layouts.add(new, value)
            return new
        shared = [each for each in used_vars(value) if each in self.layouts.known and self._is_shared(each)]
        if not shared:
            return value
        if _is_straight(value) and value.args[1] in shared:
            for way in (self._along, self._across):
                product = way(builder, value)
                if product is not None:
                    return product
        if _transposes_weight(value) and value.args[1] in shared:
            grad, weight = value.args
            layout = _turned(weight, self.layouts.known[weight])
            across = layout and self._made(builder, layout, [shape_of(weight)[axis] for axis in ACROSS])
            if across is not None:
                return conv2d_data_gradient(grad, across, **attributes_of(value), transposed=True)
        made = {each: self._made(builder, self.layouts.known[each], shape_of(each)) for each in shared}
        return substitute(value, {var: new for var, new in made.items() if new is not None})

    def _is_shared(self, var: relax.Var) -> bool:
        return self.layouts.known[var].source in self.orders

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
        matrix = _Matrix.of(product, self.layouts.known[product.args[1]].order)
        width = 0 if matrix is None else matrix.width_in(self._order_of(product))
        if matrix is None or width < VECTOR:
            return None
        *_, reduced, columns = matrix.shape
        shape = (*matrix.shape[:-2], columns // width, reduced, width)
        return packed_matmul(product.args[0], builder.emit(R.reshape(self._kept_of(builder, product), shape)))

    def _across(self, builder: relax.BlockBuilder, product: relax.Call) -> Expr | None:
        """Return a product with the kept copy if that is the weight's transpose, in strips or not."""
        x, weight = product.args
        matrix = _Matrix.of(product, self.layouts.known[weight].order)
        across = None if matrix is None else matrix.transposed()
        if across is None:
            return None
        *outer, columns, reduced = across.shape
        if columns % VECTOR:
            return None
        width = reduced if across.order == self._order_of(product) else across.width_in(self._order_of(product))
        if not width:
            return None
        shape = (*outer, reduced // width, columns, width)
        return across_matmul(x, builder.emit(R.reshape(self._kept_of(builder, product), shape)))

    def _order_of(self, product: relax.Call) -> Order:
        return self.orders[self.layouts.known[product.args[1]].source]

    def _kept_of(self, builder: relax.BlockBuilder, product: relax.Call) -> Expr:
        return self._kept(builder, self.layouts.known[product.args[1]].source)

    def _kept(self, builder: relax.BlockBuilder, source: str) -> Expr:
        """Return the flat value that is kept, made from its source in the same way in every function."""
        if source not in self.kept:
            value = self.layouts.sources[source]
            if source in self.layouts.transforms:
                value = builder.emit(winograd_weight(value))
            self.kept[source] = _prepared(builder, value, self.orders[source])
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
        found = permuted(order, shape, [*_swapped(len(outer)), len(outer) + 2])
        return None if found is None else cls((*outer, rows, count * width), found)

    def width_in(self, order: Order) -> int:
        """Return the width of the strips of its columns that have an order; 0 if there are none."""
        *outer, rows, columns = self.shape
        axes = [*_swapped(len(outer)), len(outer) + 2]
        for width in divisors(columns):
            if width < columns and permuted(self.order, (*outer, rows, columns // width, width), axes) == order:
                return width
        return 0

    def transposed(self) -> _Matrix | None:
        """Return the transposed matrix."""
        *outer, rows, columns = self.shape
        order = permuted(self.order, self.shape, _swapped(len(outer)))
        return None if order is None else _Matrix((*outer, columns, rows), order)


def _swapped(before: int) -> list[int]:
    """Return the permutation that swaps two axes, behind ``before`` others."""
    return [*range(before), before + 1, before]


def _is_straight(value: Expr) -> bool:
    """Return whether a value is a product with one matrix, or one for each element of the batch, as they are."""
    if op_name(value) == "pock.packed_matmul":
        return True
    if op_name(value) != "pock.matmul" or value.attrs["transpose_a"] or value.attrs["transpose_b"]:
        return False
    left, right = (shape_of(operand)[:-2] for operand in value.args)
    return right in ((), left)


def _prepared(builder: relax.BlockBuilder, value: Expr, order: Order) -> Expr:
    """Bring a value into an order: a flat value, which :class:`LiftFrozen` computes once."""
    size = math.prod(shape_of(value))
    way = transpose_between(original(size), order)
    if way is None or order == original(size):
        return builder.emit(R.reshape(value, (size,)))
    moved = builder.emit(R.permute_dims(builder.emit(R.reshape(value, way[0])), way[1]))
    return builder.emit(R.reshape(moved, (size,)))
