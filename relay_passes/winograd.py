"""Convolves with frozen 3x3 weights by Winograd's algorithm."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from schedules.kernels.winograd import TILE, tiles

from .ir import Expr, bindings_of, constant_vars, op_name, rewrite, shape_of, update_function
from .operators.registry import attributes_of, plain
from .operators.training import matmul, winograd_input, winograd_output, winograd_weight

MOST_BYTES = 16 * 2**20
"""Of the transformed input and output: about half of a last-level cache."""
FEWEST_CHANNELS = 32


@tvm.transform.module_pass(opt_level=0, name="Winograd")
@dataclass(frozen=True)
class Winograd:
    """Turn 3x3 convolutions of stride 1, and their data gradients, into 16 matrix products where the weight is made of
    ``frozen`` parameters alone.

    In, out: a dataflow function, channels last. The weights' transform is left to :class:`LiftFrozen`. The transformed
    images are four times as large as the images: it pays while they stay in a cache, and where the channels are enough
    for products to cost more than transforms.
    """

    frozen: Collection[str] = ()
    function: str = "main"
    fewest_multiplications: int = 20_000_000
    """Of the convolution: below, the time saved is not worth the memory."""

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        constant = constant_vars(func, self.frozen)
        chosen = {binding.var for binding in bindings_of(func) if self._is_suited(binding.value, constant)}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if var not in chosen:
                return value
            x, weight = value.args
            if op_name(value) == "pock.conv2d_data_gradient":
                turned = builder.emit(R.permute_dims(weight, [0, 1, 3, 2]))
                weight = builder.emit(R.flip(builder.emit(R.flip(turned, 0)), 1))
            images = builder.emit(winograd_input(x, padding=_padding(value)))
            products = matmul(images, builder.emit(winograd_weight(weight)), transpose_a=False, transpose_b=False)
            return winograd_output(builder.emit(products), shape=shape_of(value))

        return update_function(mod, self.function, rewrite(func, visit))

    def _is_suited(self, value: Expr, constant: Collection[relax.Var]) -> bool:
        if op_name(value) == "relax.nn.conv2d" and value.attrs.kernel_layout == "HWIO":
            steps, groups = [*value.attrs.strides, *value.attrs.dilation], value.attrs.groups
        elif op_name(value) == "pock.conv2d_data_gradient":
            attributes = attributes_of(value)
            steps, groups = [*attributes["strides"], *attributes["dilation"]], attributes["groups"]
        else:
            return False
        x, weight = value.args
        *taps, inputs, outputs = shape_of(weight)
        batch, height, width, _ = shape_of(value)
        size = 4 * TILE**2 * batch * tiles(height) * tiles(width) * (inputs + outputs)
        is_plain = taps == [3, 3] and int(groups) == 1 and all(int(step) == 1 for step in steps)
        is_frozen = not isinstance(weight, relax.Var) or (weight in constant and x not in constant)
        is_within = all(0 <= pad <= 2 for pad in _padding(value)) if is_plain else False
        is_large = math.prod(taps) * inputs * outputs * batch * height * width >= self.fewest_multiplications
        return (
            is_plain
            and is_frozen
            and is_within
            and is_large
            and min(inputs, outputs) >= FEWEST_CHANNELS
            and size <= MOST_BYTES
        )


def _padding(call: relax.Call) -> tuple[int, ...]:
    """The padding with which a convolution slides over its first operand: top, left, bottom, right."""
    if op_name(call) == "relax.nn.conv2d":
        return plain(call.attrs.padding)
    before = [2 - pad for pad in attributes_of(call)["padding"][:2]]
    sizes = zip(shape_of(call)[1:3], shape_of(call.args[0])[1:3], before, strict=True)
    return (*before, *(size - rows + 2 - first for size, rows, first in sizes))
