"""Computes 3x3 convolutions by Winograd's algorithm."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import tvm
from tvm import DataType, IRModule, relax
from tvm.relax import op as R

from schedules.kernels.winograd import STEP, TAPS, TILE, tiles

from ..ir import Expr, bindings_of, constant_vars, dtype_of, op_name, rewrite, shape_of, update_function
from ..operators.registry import attributes_of, plain
from ..operators.training import (
    matmul,
    winograd_gradient,
    winograd_input,
    winograd_output,
    winograd_weight,
    winograd_weight_gradient,
)

MOST_BYTES = 64 * 2**20
"""Largest size in bytes of the transformed input and output together."""
FEWEST_CHANNELS = 32
FEWEST_MULTIPLICATIONS = 20_000_000
"""Fewest multiplications of a convolution: below, the time saved is not worth the memory."""
FEWEST_PIXELS = 1024
"""Fewest pixels of the result for a trained weight: below, transforming the weight costs what the products save."""
Extents = tuple[int, ...]
"""Rows and columns of a convolution's pixels, and its input and output channels."""
CONVOLUTIONS = ("relax.nn.conv2d", "pock.conv2d_data_gradient", "pock.conv2d_weight_gradient")


@tvm.transform.module_pass(opt_level=0, name="Winograd")
@dataclass(frozen=True)
class Winograd:
    """Rewrite 3x3 convolutions of stride 1, and their gradients, to 16 matrix products.

    In, out: a dataflow function, channels last. Transforms of weights made only of ``frozen`` parameters are hoisted by
    :class:`LiftFrozen`; other weights are transformed each step. Transformed images are four times as large. The
    rewrite pays with enough channels that products cost more than transforms.
    """

    frozen: Collection[str] = ()
    function: str = "main"
    fewest_multiplications: int = FEWEST_MULTIPLICATIONS
    fewest_pixels: int = FEWEST_PIXELS
    left: Collection[Extents] = ()
    """Convolutions that are left as they are."""

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        constant = constant_vars(func, self.frozen)
        suited = suited_convolutions(func, self.frozen, self.fewest_multiplications, self.fewest_pixels)
        chosen = {var for var, extents in suited.items() if extents not in self.left}
        across = {
            binding.var
            for binding in bindings_of(func)
            if op_name(binding.value) == "pock.conv2d_data_gradient" and binding.value.args[1] in constant
        }

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if var not in chosen:
                return value
            x, other = value.args
            if var in across:
                # Read across, the transform of the forward product is that of the turned kernel.
                images = builder.emit(winograd_input(x, padding=_padding(value), turned=True))
                weight = builder.emit(R.permute_dims(builder.emit(winograd_weight(other)), [0, 2, 1]))
                products = builder.emit(matmul(images, weight, transpose_a=False, transpose_b=False))
                return winograd_output(products, shape=shape_of(value), turned=True)
            images = builder.emit(winograd_input(x, padding=_padding(value)))
            if op_name(value) == "pock.conv2d_weight_gradient":
                grads = builder.emit(winograd_gradient(other))
                sums = builder.emit(matmul(images, grads, transpose_a=True, transpose_b=False))
                return winograd_weight_gradient(sums)
            if op_name(value) == "pock.conv2d_data_gradient":
                turned = builder.emit(R.permute_dims(other, [0, 1, 3, 2]))
                other = builder.emit(R.flip(builder.emit(R.flip(turned, 0)), 1))
            products = matmul(images, builder.emit(winograd_weight(other)), transpose_a=False, transpose_b=False)
            return winograd_output(builder.emit(products), shape=shape_of(value))

        return update_function(mod, self.function, rewrite(func, visit))


def suited_convolutions(
    func: relax.Function,
    frozen: Collection[str],
    fewest_multiplications: int = FEWEST_MULTIPLICATIONS,
    fewest_pixels: int = FEWEST_PIXELS,
) -> dict[relax.Var, Extents]:
    """Return the extents of the convolutions for which the rewrite pays, and of gradients, by their results."""
    constant = constant_vars(func, frozen)
    values = {binding.var: binding.value for binding in bindings_of(func)}
    return {
        var: extents_of(value)
        for var, value in values.items()
        if _is_suited(value, constant, fewest_multiplications, fewest_pixels)
    }


def _is_suited(value: Expr, constant: Collection[relax.Var], fewest_multiplications: int, fewest_pixels: int) -> bool:
    if op_name(value) not in CONVOLUTIONS or not _is_plain(value):
        return False
    x, other = value.args
    *taps, _, _ = _weight_shape(value)
    height, width, inputs, outputs = extents_of(value)
    batch = shape_of(x)[0]
    pixels, count = batch * height * width, batch * tiles(height) * tiles(width)
    is_frozen = not isinstance(other, relax.Var) or other in constant
    return (
        taps == [TAPS, TAPS]
        and all(0 <= pad <= TILE - STEP for pad in _padding(value))
        and x not in constant
        and (is_frozen or pixels >= fewest_pixels)
        and math.prod(taps) * inputs * outputs * pixels >= fewest_multiplications
        and min(inputs, outputs) >= FEWEST_CHANNELS
        and DataType(dtype_of(x)).itemsize * TILE**2 * count * (inputs + outputs) <= MOST_BYTES
    )


def extents_of(call: relax.Call) -> Extents:
    """Return the extents of a convolution, or of a gradient of one."""
    pixels = shape_of(call.args[1] if op_name(call) == "pock.conv2d_weight_gradient" else call)
    return (*pixels[1:3], *_weight_shape(call)[2:])


def _weight_shape(call: relax.Call) -> tuple[int, ...]:
    return shape_of(call if op_name(call) == "pock.conv2d_weight_gradient" else call.args[1])


def uses_winograd(func: relax.Function) -> bool:
    """Return whether a function has Winograd transforms."""
    return any(op_name(binding.value).startswith("pock.winograd") for binding in bindings_of(func))


def _is_plain(call: relax.Call) -> bool:
    """Return whether a convolution, or its gradient, is dense, of stride 1, undilated, and channels last."""
    if op_name(call) == "relax.nn.conv2d":
        attrs = call.attrs
        if attrs.kernel_layout != "HWIO":
            return False
        steps, groups = [*attrs.strides, *attrs.dilation], int(attrs.groups)
    else:
        attributes = attributes_of(call)
        steps, groups = [*attributes["strides"], *attributes["dilation"]], attributes["groups"]
    return groups == 1 and all(int(step) == 1 for step in steps)


def _padding(call: relax.Call) -> tuple[int, ...]:
    """Return the padding (top, left, bottom, right) with which 3x3 taps slide over the first operand."""
    if op_name(call) == "relax.nn.conv2d":
        return plain(call.attrs.padding)
    if op_name(call) == "pock.conv2d_weight_gradient":
        return attributes_of(call)["padding"]
    before = [2 - pad for pad in attributes_of(call)["padding"][:2]]
    sizes = zip(shape_of(call)[1:3], shape_of(call.args[0])[1:3], before, strict=True)
    return (*before, *(size - rows + 2 - first for size, rows, first in sizes))
