"""Transposes operands of matrix products, so that kernels read contiguous columns."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Expr, bindings_of, constant_vars, eliminate_dead, op_name, rewrite, shape_of, update_function
from ..operators.registry import attributes_of
from ..operators.training import across_matmul, conv2d_data_gradient, matmul


@tvm.transform.module_pass(opt_level=0, name="StraightenProducts")
@dataclass(frozen=True)
class StraightenProducts:
    """Make the second operand of every ``pock.matmul`` untransposed.

    In, out: a dataflow function. The data gradient of a linear layer, ``dX = dY W^T``, reads the weight across its
    columns. A weight made only of ``frozen`` parameters is transposed, and :class:`LiftFrozen` hoists that. A trained
    one is read as it is: each task of ``pock.across_matmul`` turns its part in cache, if the result has whole vectors.
    Else the weight is transposed every step, or dY and the result, ``dX^T = W dY^T``: whichever moves less data. The
    small matrices of a batch, as in attention, are transposed. The data gradient of a 1x1 convolution with a trained
    weight becomes ``pock.across_matmul`` where the images are small; of other dense convolutions of stride 1 each task
    turns its part of the weight, too. The data gradient of a 1x1 convolution with a stride is one without, between
    zeros.
    """

    frozen: Collection[str] = ()
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        constant = constant_vars(func, self.frozen)
        fixed = {binding.var for binding in bindings_of(func) if _reads_frozen(binding.value, constant)}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if _skips_pixels(value):
                pixels = builder.emit(visit(builder, var, builder.normalize(_dense(value))))
                return _between_zeros(builder, pixels, value)
            if _is_pointwise_gradient(value) and var not in fixed and _has_few_rows(value):
                grad, weight = value.args
                columns, terms = shape_of(weight)[2:]
                if columns % VECTOR == 0:
                    return across_matmul(grad, builder.emit(R.reshape(weight, (1, columns, terms))))
            if _is_dense_gradient(value) and var not in fixed and _has_few_rows(value):
                return conv2d_data_gradient(*value.args, **attributes_of(value), across=True)
            if op_name(value) != "pock.matmul" or not value.attrs["transpose_b"]:
                return value
            a, b = value.args
            if len(shape_of(b)) == 2 and not value.attrs["transpose_a"] and var not in fixed:
                *rows, columns = shape_of(value)
                if columns % VECTOR == 0:
                    return across_matmul(a, builder.emit(R.reshape(b, (1, *shape_of(b)))))
                if _turning_pays(math.prod(rows), *shape_of(b)):
                    return _turned(builder, a, b, shape_of(value))
            straight = _transposed(builder, b)
            return matmul(a, straight, transpose_a=bool(value.attrs["transpose_a"]), transpose_b=False)

        return update_function(mod, self.function, eliminate_dead(rewrite(func, visit)))


VECTOR = 16
"""Elements that fill whole vectors on every target."""


MOST_PIXELS = 1024
"""Pixels of a batch up to which transposing a 1x1 convolution's weight takes longer than reading dY once for every
strip of the result. At 784 pixels the product is 1.04 times as fast; with 100,000, MobileNetV2's step is slower."""


FEWEST_COLUMNS = 128
"""Fewest input channels of a convolution whose weight is turned by tasks, which have some of them each."""


def _has_few_rows(gradient: relax.Call) -> bool:
    return math.prod(shape_of(gradient)[:-1]) <= MOST_PIXELS


def _turning_pays(rows: int, columns: int, reduced: int) -> bool:
    """Return whether transposing dY and the result is cheaper than transposing the weight, and keeps vectors whole."""
    return rows * (columns + reduced) < columns * reduced and (rows % VECTOR == 0 or rows < VECTOR)


def _turned(builder: relax.BlockBuilder, a: Expr, b: Expr, shape: Sequence[int]) -> Expr:
    """Return ``A B^T``, of ``shape``, as the transpose of ``B A^T``."""
    flat = builder.emit(R.reshape(a, (math.prod(shape[:-1]), shape_of(b)[-1])))
    product = builder.emit(matmul(b, _transposed(builder, flat), transpose_a=False, transpose_b=False))
    return R.reshape(_transposed(builder, product), shape)


def _is_pointwise_gradient(value: Expr) -> bool:
    """Return whether a call is the data gradient of a 1x1 convolution: a matrix product of the pixels of dY."""
    if op_name(value) != "pock.conv2d_data_gradient":
        return False
    attributes = attributes_of(value)
    ones = [*attributes["strides"], attributes["groups"], *shape_of(value.args[1])[:2]]
    return all(n == 1 for n in ones) and not any(attributes["padding"]) and not attributes.get("transposed", False)


def _is_dense_gradient(value: Expr) -> bool:
    """Return whether a call is the data gradient of a dense convolution of stride 1, with whole vectors of channels,
    and enough of them to share out."""
    if op_name(value) != "pock.conv2d_data_gradient":
        return False
    attributes = attributes_of(value)
    is_dense = attributes["groups"] == 1 and not attributes.get("transposed", False)
    *_, inputs, outputs = shape_of(value.args[1])
    is_wide = inputs >= FEWEST_COLUMNS and inputs % VECTOR == outputs % VECTOR == 0
    return is_dense and is_wide and tuple(attributes["strides"]) == (1, 1)


def _skips_pixels(value: Expr) -> bool:
    """Return whether a call is the data gradient of a 1x1 convolution with a stride: most of its results are 0."""
    if op_name(value) != "pock.conv2d_data_gradient":
        return False
    attributes = attributes_of(value)
    is_plain = attributes["groups"] == 1 and not any(attributes["padding"])
    return is_plain and shape_of(value.args[1])[:2] == (1, 1) and any(step > 1 for step in attributes["strides"])


def _dense(gradient: relax.Call) -> relax.Call:
    """Return the data gradient of a convolution without the stride: of the pixels that are read."""
    grad, weight = gradient.args
    attributes = attributes_of(gradient) | {"strides": (1, 1), "size": shape_of(grad)[1:3]}
    return conv2d_data_gradient(grad, weight, **attributes)


def _between_zeros(builder: relax.BlockBuilder, pixels: relax.Var, gradient: relax.Call) -> Expr:
    """Return the data gradient with a stride: ``pixels`` with zeros between and behind them."""
    count, height, width, channels = shape_of(pixels)
    attributes = attributes_of(gradient)
    (high, wide), size = attributes["strides"], attributes["size"]
    apart = builder.emit(R.reshape(pixels, (count, height, 1, width, 1, channels)))
    padded = builder.emit(R.nn.pad(apart, [0, 0, 0, 0, 0, high - 1, 0, 0, 0, wide - 1, 0, 0]))
    whole = builder.emit(R.reshape(padded, (count, height * high, width * wide, channels)))
    if (height * high, width * wide) == tuple(size):
        return whole
    return R.strided_slice(whole, [1, 2], [0, 0], list(size))


def _reads_frozen(value: Expr, constant: set[relax.Var]) -> bool:
    """Return whether ``value`` is a product whose second operand is constant."""
    if op_name(value) not in ("pock.matmul", "pock.conv2d_data_gradient"):
        return False
    return not isinstance(value.args[1], relax.Var) or value.args[1] in constant


def _transposed(builder: relax.BlockBuilder, x: Expr) -> Expr:
    rank = len(shape_of(x))
    return builder.emit(R.permute_dims(x, [*range(rank - 2), rank - 1, rank - 2]))
