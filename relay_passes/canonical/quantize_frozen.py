"""Computes the frozen prefix of a network in eight bits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax

from schedules.kernels.quantized import WORD, taps_in_words

from ..analysis.fixed_point import EightBits, packed, taps_packed
from ..analysis.frozen_prefix import DEPTHWISE, MATMUL, MEAN, Layer, frozen_prefix
from ..analysis.layer_numbers import Numbers
from ..ir import Expr, bindings_of, dtype_of, eliminate_dead, op_name, rewrite, shape_of, update_function
from ..operators import quantized as Q
from ..operators import word_planes as P
from ..operators.registry import plain
from .layers_over_planes import PlanesLayer, planes_layer_of, planes_of_floats


@tvm.transform.module_pass(opt_level=0, name="QuantizeFrozen")
@dataclass(frozen=True)
class QuantizeFrozen:
    """Compute the products of the frozen prefix, and means of them, in integers: weights and activations of eight bits.

    In: a dataflow function in canonical form with the attribute ``num_input``, before its loss. Out: the same function;
    layers of the prefix are ``pock.quantized_*`` and ``pock.requantize``, whose weights are constants. A result that no
    such layer reads is left float: it comes from the sums of 32 bits. What layers and others read is stored in eight
    bits, and dequantised once.

    ``numbers`` are those that :func:`relay_passes.analysis.layer_numbers.choose_numbers` chose for a function with the
    same values.

    ``word_planes``: convolutions store planes of words (``schedules/kernels/word_planes.py``), where their windows fit.
    """

    trained: Collection[str]
    numbers: Numbers
    function: str = "main"
    word_planes: bool = False

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        return update_function(
            mod, self.function, eliminate_dead(_Rewriter(func, self.trained, self.numbers, self.word_planes).run(func))
        )


def quantized(x: Expr, numbers: EightBits) -> relax.Call:
    """Store a float value [.., C] in eight bits: [.., C rounded up to words], or fewer channels than a word in one."""
    columns = shape_of(x)[-1]
    given = {"inverse": float(np.float32(1 / numbers.scale)), "zero": numbers.zero}
    # A pixel of few channels is one word, whose bytes come from as many planes of an image.
    return (
        Q.quantize_words(x, **given) if columns < WORD else Q.quantize(x, **given, channels=-(-columns // WORD) * WORD)
    )


def product_of(layer: Layer, call: relax.Call, x: Expr, numbers: Numbers) -> relax.Call:
    """Compute the sums of a layer from its input in eight bits. ``call`` is its product in float."""
    if layer.kind == MEAN:
        return Q.quantized_sum(x, keepdims=bool(call.attrs.keepdims))
    weight, zero = numbers.sums[layer.product.name].weight, numbers.values[layer.x.name].zero
    if layer.kind == MATMUL:
        return Q.quantized_matmul(x, relax.const(packed(weight)))
    geometry = {name: plain(getattr(call.attrs, name)) for name in ("strides", "padding", "dilation")}
    if layer.kind == DEPTHWISE:
        return _depthwise(x, weight, geometry, shape_of(layer.product)[2], zero)
    return Q.quantized_conv2d(x, relax.const(packed(weight)), **geometry, zero=zero)


def _depthwise(x: Expr, weight: np.ndarray, geometry: dict[str, Any], columns: int, zero: int) -> relax.Call:
    """Return a depthwise convolution to so many columns, by words of taps if these suit its stride."""
    stride, taps = geometry["strides"][1], weight.shape[1]
    found = taps_in_words(taps, stride, columns)
    if found is None or tuple(geometry["dilation"]) != (1, 1):
        return Q.quantized_conv2d(x, relax.const(weight), **geometry, zero=zero)
    del geometry["dilation"]
    return Q.quantized_depthwise(x, relax.const(taps_packed(weight, *found, stride)), **geometry, taps=taps, zero=zero)


def product_in_float(layer: Layer, sums: Expr, numbers: Numbers) -> relax.Call:
    """Turn the sums of a layer into its product in float."""
    found = numbers.sums[layer.product.name]
    vectors = found.zero_bias.astype(np.int32), found.scale.astype(np.float32)
    return Q.dequantize_sums(sums, *map(relax.const, vectors))


def result_of(layer: Layer, sums: Expr, other: Expr | None, numbers: Numbers) -> relax.Call:
    """Compute the result of a layer in eight bits from its sums, and from its residual in eight bits."""
    vectors, residual = numbers.rescalings[layer.product.name]
    operands = [sums, *map(relax.const, vectors.vectors())]
    if residual is None or other is None:
        return Q.requantize(*operands, zero=numbers.values[layer.result.name].zero)
    return Q.requantize_sum(*operands, other, **vars(residual))


class _Rewriter:
    """Rebuilds a function with some numbers. Keys are variables of the old function."""

    def __init__(self, func: relax.Function, trained: Collection[str], numbers: Numbers, word_planes: bool) -> None:
        self.word_planes = word_planes
        self.numbers, self.prefix = numbers, frozen_prefix(func, trained, numbers.excluded)
        self.old = {binding.var: binding.value for binding in bindings_of(func)}
        self.stored: dict[relax.Var, relax.Var] = {}
        """Eight bits of values."""
        self.planes: dict[relax.Var, relax.Var] = {}
        """The same as planes of words."""
        self.sums: dict[relax.Var, relax.Var] = {}
        """Sums by the product; for layers over planes, their input, since their sums are never stored."""
        self.over_planes: dict[relax.Var, PlanesLayer] = {}
        """Layers over planes by the product."""
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
        if (
            (source in self.stored or source in self.planes)
            and var in self.prefix.eight_bits
            and shape_of(var)[-1] % WORD == 0
        ):
            bytes_of = self._eight_bits(builder, source, value.args[0])
            pooled = builder.emit(relax.Call(value.op, [bytes_of], value.attrs), var.name)
            return self._store(var, pooled)
        return value

    def _product(self, builder: relax.BlockBuilder, layer: Layer, value: relax.Call) -> Expr:
        """Compute the sums of a layer, and what they mean in float if nobody stores them in eight bits."""
        planes = planes_layer_of(layer, value, self.numbers) if self.word_planes else None
        if planes is not None:
            self.over_planes[layer.product] = planes
            self.sums[layer.product] = x = self._as_planes(builder, layer.x, value.args[0])
            if not self.prefix.requantizes(layer):
                return planes.in_float(builder, x, layer, self.numbers)
            return self._requantized(builder, layer) if layer.result.same_as(layer.product) else x
        x = self._eight_bits(builder, layer.x, value.args[0])
        made = builder.emit(product_of(layer, value, x, self.numbers), layer.product.name)
        self.sums[layer.product] = made
        if not self.prefix.requantizes(layer):
            return product_in_float(layer, made, self.numbers)
        return self._requantized(builder, layer) if layer.result.same_as(layer.product) else made

    def _part(self, builder: relax.BlockBuilder, layer: Layer, var: relax.Var, value: relax.Call) -> Expr:
        """Skip what stands between the sums of a layer and its result, except for the residual."""
        if layer.other is not None and op_name(value) == "relax.add":
            for old, new in zip(self.old[var].args, value.args, strict=True):
                if isinstance(old, relax.Var) and old.same_as(layer.other):
                    stores = self._as_planes if layer.product in self.over_planes else self._eight_bits
                    stores(builder, layer.other, new)
        return self._requantized(builder, layer) if var.same_as(layer.result) else self.sums[layer.product]

    def _requantized(self, builder: relax.BlockBuilder, layer: Layer) -> Expr:
        planes = self.over_planes.get(layer.product)
        stored = self.stored if planes is None else self.planes
        other = None if layer.other is None else stored[layer.other]
        sums = self.sums[layer.product]
        call = (planes.result if planes is not None else result_of)(layer, sums, other, self.numbers)
        return self._store(layer.result, builder.emit(call, layer.result.name), planes is not None)

    def _store(self, var: relax.Var, q: relax.Var, is_planes: bool = False) -> Expr:
        """Keep a value in eight bits, and return it as others read it."""
        (self.planes if is_planes else self.stored)[var] = q
        if is_planes and var in self.prefix.in_float:
            return P.dequantize_planes(q, size=shape_of(var)[1:3], **vars(self.numbers.values[var.name]))
        return Q.dequantize(q, **vars(self.numbers.values[var.name])) if var in self.prefix.in_float else q

    def _eight_bits(self, builder: relax.BlockBuilder, var: relax.Var, new: Expr) -> relax.Var:
        """Return a value in eight bits: quantised now, unless a layer stored it so."""
        if var not in self.stored:
            call = (
                P.bytes_of_planes(self.planes[var], size=shape_of(var)[1:3])
                if var in self.planes
                else quantized(new, self.numbers.values[var.name])
            )
            self.stored[var] = builder.emit(call, var.name)
        return self.stored[var]

    def _as_planes(self, builder: relax.BlockBuilder, var: relax.Var, new: Expr) -> relax.Var:
        """Return a value as planes of words: made now, unless a layer stored it so."""
        if var not in self.planes:
            call = (
                P.planes_of_bytes(self.stored[var])
                if var in self.stored and dtype_of(self.stored[var]) == "uint8"
                else planes_of_floats(new, self.numbers.values[var.name])
            )
            self.planes[var] = builder.emit(call, var.name)
        return self.planes[var]
