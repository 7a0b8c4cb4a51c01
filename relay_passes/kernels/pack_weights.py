"""Packs frozen weights into the strips that register tiles read."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from schedules.target import Target

from ..ir import (
    Expr,
    bindings_of,
    bytes_of,
    constant_vars,
    eliminate_dead,
    made_by,
    op_name,
    rewrite,
    shape_of,
    update_function,
)
from ..operators.registry import plain
from ..operators.training import packed_matmul, winograd_weight

FEW_ROWS = 256
"""Rows of a result up to which reading the weight dominates, so that packing pays for smaller weights."""
LITTLE, LARGE = 1 / 8, 1 / 2
"""Weights up to this size, for results of few and of many rows, relative to a core's cache, are read as fast
unpacked."""
TRANSPOSED, CHANNELS_LAST = (1, 0), (2, 3, 1, 0)
"""Permutations that transpose a matrix, and that give the [1, 1, k, n] weight of a 1x1 convolution from [n, k, 1,
1]."""
MOVED = ("relax.permute_dims", "pock.winograd_weight")
"""Operators that produce weights and can produce strips directly."""


@tvm.transform.module_pass(opt_level=0, name="PackWeights")
@dataclass(frozen=True)
class PackWeights:
    """Pack weights made only of ``frozen`` parameters into strips of their columns.

    In, out: a dataflow function, products straightened. Packs the weights of matrix products (1x1 convolutions and
    their data gradients among them) that have few rows, or a weight too large for a core's cache. Each task reads a
    strip of columns as wide as a register tile. Strips of a row-major matrix map to few cache sets and many pages;
    packed strips are contiguous. :class:`LiftFrozen` packs once. (Goto and van de Geijn, Anatomy of High-Performance
    Matrix Multiplication, 2008.)
    """

    frozen: Collection[str]
    target: Target
    function: str = "main"
    unpacked: tuple[float, float] = (LITTLE, LARGE)
    """Largest weights left as they are, for results of few and of many rows, relative to a core's cache."""

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        constant = constant_vars(func, self.frozen)
        widths = {binding.var: self._width(binding.value, constant) for binding in bindings_of(func)}
        strips = _Strips()

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if widths[var]:
                return packed_matmul(value.args[0], strips.of(builder, value, widths[var]))
            if op_name(value) not in MOVED:
                return value
            new = builder.emit(value, var.name)
            strips.made[new] = value
            return new

        return update_function(mod, self.function, eliminate_dead(rewrite(func, visit)))

    def _width(self, value: Expr, constant: Collection[relax.Var]) -> int:
        """Return the strip width, in columns, for a product's second operand; 0 if it stays unpacked."""
        if not _is_matrix_product(value):
            return 0
        weight, (*outer, rows, columns) = value.args[1], shape_of(value)
        batch = 1 if len(shape_of(weight)) == 2 else math.prod(shape_of(weight)[:-2])
        share = bytes_of(weight) // batch / self.target.traits.cache_bytes
        if isinstance(weight, relax.Var) and weight not in constant:
            return 0
        has_few_rows = math.prod(outer) * rows // batch <= FEW_ROWS
        little, large = self.unpacked
        if share <= (little if has_few_rows else large):
            return 0
        return self.target.layouts.strip_width(rows, columns)


def _is_matrix_product(value: Expr) -> bool:
    """Return whether a call is a matrix product whose second operand is one matrix or one matrix a batch element."""
    name = op_name(value)
    if name == "pock.matmul":
        is_plain = not (value.attrs["transpose_a"] or value.attrs["transpose_b"])
        batch = shape_of(value.args[1])[:-2]
        return is_plain and batch in ((), shape_of(value.args[0])[:-2])
    if name not in ("relax.nn.conv2d", "pock.conv2d_data_gradient"):
        return False
    if name == "relax.nn.conv2d" and (value.attrs.data_layout, value.attrs.kernel_layout) != ("NHWC", "HWIO"):
        return False
    ones = [*plain(value.attrs["strides"]), plain(value.attrs["groups"]), *shape_of(value.args[1])[:2]]
    return all(number == 1 for number in ones) and not any(plain(value.attrs["padding"]))


@dataclass
class _Strips:
    """Weights packed into strips."""

    made: dict[relax.Var, Expr] = field(default_factory=dict)
    """Calls of :data:`MOVED` by the variables that hold them."""

    def of(self, builder: relax.BlockBuilder, product: relax.Call, width: int) -> Expr:
        """Pack the weight of a product, [.., k, n], into [.., n / width, k, width].

        A transposed or transformed weight is packed in the same step: ``prepare`` then needs no memory for an
        intermediate.
        """
        weight = product.args[1]
        maker = made_by(self.made, weight)
        if op_name(maker) == "pock.winograd_weight":
            return builder.emit(winograd_weight(maker.args[0], width=width))
        is_convolution = op_name(product) != "pock.matmul"
        is_turned = maker is not None and plain(maker.attrs.axes) == (CHANNELS_LAST if is_convolution else TRANSPOSED)
        weight = maker.args[0] if is_turned else weight
        *outer, rows, columns = shape_of(weight)
        if is_convolution:
            outer, (rows, columns) = [], shape_of(weight)[:2] if is_turned else shape_of(weight)[2:]
        if is_turned != (op_name(product) == "pock.conv2d_data_gradient"):
            cut, axes = (*outer, rows // width, width, columns), (0, 2, 1)
        else:
            cut, axes = (*outer, rows, columns // width, width), (1, 0, 2)
        before = len(outer)
        moved = [*range(before), *(before + axis for axis in axes)]
        return builder.emit(R.permute_dims(builder.emit(R.reshape(weight, cut)), moved))
