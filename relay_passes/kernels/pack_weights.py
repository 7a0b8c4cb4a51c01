"""Stores frozen weights as the register tiles of a product read them."""

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
"""Of a result: for so few, reading the weight is much of the work, and strips one behind another are read faster."""
LITTLE, LARGE = 1 / 8, 1 / 2
"""Of the second cache: smaller weights, of results of few and of many rows, are read as fast as they are."""
TRANSPOSED, CHANNELS_LAST = (1, 0), (2, 3, 1, 0)
"""Axes by which a matrix is turned, and the weight of a convolution, which is [n, k, 1, 1] before."""
MOVED = ("relax.permute_dims", "pock.winograd_weight")
"""What makes a weight, and can make strips of it at once."""


@tvm.transform.module_pass(opt_level=0, name="PackWeights")
@dataclass(frozen=True)
class PackWeights:
    """Cut weights that are made of ``frozen`` parameters alone into strips of their columns.

    In, out: a dataflow function, products straightened. Tasks of a matrix product (a 1x1 convolution, or its data
    gradient, is one) that has few rows, or a weight too large for the second cache, work on strips of the weight's
    columns, each as wide as a register tile. A strip of a wide matrix lies in too few sets of a cache, and on too many
    pages; :class:`LiftFrozen` stores the strips one behind another once and for all. (Goto and van de Geijn, Anatomy of
    High-Performance Matrix Multiplication, 2008.)
    """

    frozen: Collection[str]
    target: Target
    function: str = "main"

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
        """The columns of a strip of a product's second operand; 0 where it is not to be packed."""
        if not _is_matrix_product(value):
            return 0
        weight, (*outer, rows, columns) = value.args[1], shape_of(value)
        batch = 1 if len(shape_of(weight)) == 2 else math.prod(shape_of(weight)[:-2])
        share = bytes_of(weight) // batch / self.target.traits.l2_bytes
        if isinstance(weight, relax.Var) and weight not in constant:
            return 0
        has_few_rows = math.prod(outer) * rows // batch <= FEW_ROWS
        if columns % self.target.traits.lanes or share <= (LITTLE if has_few_rows else LARGE):
            return 0
        return self.target.layouts.strip_width(rows, columns)


def _is_matrix_product(value: Expr) -> bool:
    """Whether a call multiplies matrices with one matrix, or each with its own."""
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
    """Weights as strips."""

    made: dict[relax.Var, Expr] = field(default_factory=dict)
    """The calls of :data:`MOVED`."""

    def of(self, builder: relax.BlockBuilder, product: relax.Call, width: int) -> Expr:
        """The weight of a product, a [.., k, n] of its own, as [.., n / width, k, width].

        What was transformed or transposed comes as strips in one go: in two, ``prepare`` would need memory for what
        lies between.
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
