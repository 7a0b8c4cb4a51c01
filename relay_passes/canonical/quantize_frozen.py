"""Computes the frozen prefix of a network in eight bits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax

from schedules.kernels.quantized import WORD, taps_in_words

from ..analysis.fixed_point import (
    EightBits,
    Rescaling,
    Residual,
    Sums,
    Unfit,
    eight_bits,
    packed,
    quantized_sums,
    rescaling,
    rescaling_with,
    taps_packed,
)
from ..analysis.frozen_prefix import DEPTHWISE, MATMUL, FrozenPrefix, Layer, frozen_prefix
from ..ir import Expr, bindings_of, eliminate_dead, op_name, rewrite, shape_of, update_function
from ..operators import quantized as Q
from ..operators.registry import plain

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest number of values, by name."""
Arrays = Mapping[str, np.ndarray]
"""Frozen weights and biases as layers read them, by name."""


@tvm.transform.module_pass(opt_level=0, name="QuantizeFrozen")
@dataclass(frozen=True)
class QuantizeFrozen:
    """Compute the products of the frozen prefix in integers: weights and activations of eight bits.

    In: a dataflow function in canonical form with the attribute ``num_input``, before its loss. Out: the same function;
    layers of the prefix are ``pock.quantized_*`` and ``pock.requantize``, whose weights are constants. A result that no
    such layer reads is left float: it comes from the sums of 32 bits. What layers and others read is stored in eight
    bits, and dequantised once.

    ``ranges`` are those of the values in :func:`observed`, ``means`` their means by channel; ``arrays`` hold the values
    in :func:`needed`.
    """

    trained: Collection[str]
    ranges: Ranges
    means: Arrays
    arrays: Arrays
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        plan = quantization(func, self.trained, self.ranges, self.means, self.arrays)
        return update_function(mod, self.function, eliminate_dead(_Rewriter(plan, func).run(func)))


def observed(func: relax.Function, trained: Collection[str]) -> list[relax.Var]:
    """Return the values whose ranges a quantisation takes."""
    found = frozen_prefix(func, trained).eight_bits
    return [var for var in (*func.params, *(binding.var for binding in bindings_of(func))) if var in found]


def needed(func: relax.Function, trained: Collection[str]) -> list[relax.Var]:
    """Return the weights and biases that a quantisation takes."""
    layers = frozen_prefix(func, trained).layers.values()
    return list(dict.fromkeys(each for layer in layers for each in (layer.weight, layer.bias) if each is not None))


@dataclass
class Quantization:
    """Frozen prefix with its numbers."""

    prefix: FrozenPrefix = field(default_factory=FrozenPrefix)
    numbers: dict[relax.Var, EightBits] = field(default_factory=dict)
    """Of values that are stored in eight bits."""
    sums: dict[relax.Var, Sums] = field(default_factory=dict)
    """By the product."""
    rescalings: dict[relax.Var, tuple[Rescaling, Residual | None]] = field(default_factory=dict)
    """By the product, where the result is stored in eight bits."""


def quantization(
    func: relax.Function, trained: Collection[str], ranges: Ranges, means: Arrays, arrays: Arrays
) -> Quantization:
    """Choose the numbers of every layer. One without any of 32 bits stays float, and so has no part in it."""
    excluded: dict[str, str] = {}
    while True:
        plan = Quantization(frozen_prefix(func, trained, excluded))
        made = {binding.var: binding.value for binding in bindings_of(func)}
        for var in plan.prefix.eight_bits:
            source = var
            while op_name(made.get(source)) == "relax.nn.max_pool2d" and made[source].args[0] in plan.prefix.eight_bits:
                source = made[source].args[0]
            plan.numbers[var] = eight_bits(*ranges[source.name])
        failed = {}
        for product, layer in plan.prefix.layers.items():
            try:
                _choose(plan, product, layer, means[layer.x.name], arrays)
            except Unfit as error:
                failed[layer.name] = str(error)
        if not failed:
            return plan
        excluded |= failed


def _choose(plan: Quantization, product: relax.Var, layer: Layer, mean: np.ndarray, arrays: Arrays) -> None:
    """Choose the numbers of a layer."""
    bias = None if layer.bias is None else arrays[layer.bias.name].reshape(-1)
    sums = plan.sums[product] = quantized_sums(arrays[layer.weight.name], bias, plan.numbers[layer.x], mean)
    if not plan.prefix.requantizes(layer):
        return
    result = plan.numbers[layer.result]
    if layer.other is None:
        plan.rescalings[product] = rescaling(sums, result), None
    else:
        plan.rescalings[product] = rescaling_with(sums, result, plan.numbers[layer.other])


class _Rewriter:
    """Rebuilds a function by a plan. Keys are variables of the old function."""

    def __init__(self, plan: Quantization, func: relax.Function) -> None:
        self.plan, self.prefix = plan, plan.prefix
        self.old = {binding.var: binding.value for binding in bindings_of(func)}
        self.stored: dict[relax.Var, relax.Var] = {}
        """Eight bits of values."""
        self.sums: dict[relax.Var, relax.Var] = {}
        """Sums by the product."""
        self.parts = {
            var: layer
            for layer in self.prefix.layers.values()
            if self.prefix.requantizes(layer)
            for var in (*layer.inside, layer.result)
            if var not in self.prefix.layers
        }
        """Values behind the products of layers that are requantised."""

    def run(self, func: relax.Function) -> relax.Function:
        return rewrite(func, self._visit)

    def _visit(self, builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
        if var in self.prefix.layers:
            return self._product(builder, self.prefix.layers[var], value)
        if var in self.parts:
            return self._part(builder, self.parts[var], var, value)
        source = self.old[var].args[0] if op_name(value) == "relax.nn.max_pool2d" else None
        if source in self.stored and var in self.prefix.eight_bits and shape_of(var)[-1] % WORD == 0:
            pooled = builder.emit(relax.Call(value.op, [self.stored[source]], value.attrs), var.name)
            return self._store(builder, var, pooled)
        return value

    def _product(self, builder: relax.BlockBuilder, layer: Layer, value: relax.Call) -> Expr:
        """Compute the sums of a layer, and what they mean in float if nobody stores them in eight bits."""
        x, sums = self._eight_bits(builder, layer.x, value.args[0]), self.plan.sums[layer.product]
        zero = self.plan.numbers[layer.x].zero
        if layer.kind == MATMUL:
            product = Q.quantized_matmul(x, relax.const(packed(sums.weight)))
        else:
            geometry = {name: plain(getattr(value.attrs, name)) for name in ("strides", "padding", "dilation")}
            product = _convolution(x, sums.weight, layer, geometry, zero)
        self.sums[layer.product] = made = builder.emit(product, layer.product.name)
        if not self.prefix.requantizes(layer):
            vectors = sums.zero_bias.astype(np.int32), sums.scale.astype(np.float32)
            return Q.dequantize_sums(made, *map(relax.const, vectors))
        return self._requantized(builder, layer) if layer.result.same_as(layer.product) else made

    def _part(self, builder: relax.BlockBuilder, layer: Layer, var: relax.Var, value: relax.Call) -> Expr:
        """Skip what stands between the sums of a layer and its result, except for the residual."""
        if layer.other is not None and op_name(value) == "relax.add":
            for old, new in zip(self.old[var].args, value.args, strict=True):
                if isinstance(old, relax.Var) and old.same_as(layer.other):
                    self._eight_bits(builder, layer.other, new)
        return self._requantized(builder, layer) if var.same_as(layer.result) else self.sums[layer.product]

    def _requantized(self, builder: relax.BlockBuilder, layer: Layer) -> Expr:
        vectors, residual = self.plan.rescalings[layer.product]
        operands = [self.sums[layer.product], *map(relax.const, vectors.vectors())]
        if residual is None or layer.other is None:
            call = Q.requantize(*operands, zero=self.plan.numbers[layer.result].zero)
        else:
            call = Q.requantize_sum(*operands, self.stored[layer.other], **vars(residual))
        return self._store(builder, layer.result, builder.emit(call, layer.result.name))

    def _store(self, builder: relax.BlockBuilder, var: relax.Var, q: relax.Var) -> Expr:
        """Keep a value in eight bits, and return it as others read it."""
        self.stored[var] = q
        return Q.dequantize(q, **vars(self.plan.numbers[var])) if var in self.prefix.in_float else q

    def _eight_bits(self, builder: relax.BlockBuilder, var: relax.Var, new: Expr) -> relax.Var:
        """Return a value in eight bits: quantised now, unless a layer stored it so."""
        if var not in self.stored:
            numbers, columns = self.plan.numbers[var], shape_of(var)[-1]
            channels = -(-columns // WORD) * WORD
            given = {"inverse": float(np.float32(1 / numbers.scale)), "zero": numbers.zero}
            # A pixel of few channels is one word, whose bytes come from as many planes of an image.
            is_word = columns < WORD
            quantized = Q.quantize_words(new, **given) if is_word else Q.quantize(new, **given, channels=channels)
            self.stored[var] = builder.emit(quantized, var.name)
        return self.stored[var]


def _convolution(x: relax.Var, weight: np.ndarray, layer: Layer, geometry: dict[str, Any], zero: int) -> relax.Call:
    """Return a convolution by words of channels; or depthwise by words of taps, if these suit its stride."""
    if layer.kind != DEPTHWISE:
        return Q.quantized_conv2d(x, relax.const(packed(weight)), **geometry, zero=zero)
    stride, taps = geometry["strides"][1], weight.shape[1]
    found = taps_in_words(taps, stride, shape_of(layer.product)[2])
    if found is None or tuple(geometry["dilation"]) != (1, 1):
        return Q.quantized_conv2d(x, relax.const(weight), **geometry, zero=zero)
    del geometry["dilation"]
    return Q.quantized_depthwise(x, relax.const(taps_packed(weight, *found, stride)), **geometry, taps=taps, zero=zero)
