"""Measures what each layer of a frozen prefix loses in eight bits, alone."""

from __future__ import annotations

from collections.abc import Collection

from tvm import relax
from tvm.relax import op as R

from ..analysis.frozen_prefix import Layer, frozen_prefix
from ..analysis.layer_numbers import Numbers
from ..ir import Expr, rewrite, shape_of
from ..operators import quantized as Q
from .quantize_frozen import product_in_float, product_of, quantized, result_of


def quantize_alone(
    func: relax.Function, trained: Collection[str], numbers: Numbers
) -> tuple[relax.Function, list[Layer]]:
    """Return a function that computes the network in float, and each layer in eight bits beside it, from float values.

    Its results are two for each layer, in the order of the list, each of one number: the sum of squares of what the
    layer loses, and that of its values in float.
    """
    prefix = frozen_prefix(func, trained, numbers.excluded)
    ends = {(layer.result if prefix.requantizes(layer) else product): layer for product, layer in prefix.layers.items()}
    new: dict[relax.Var, Expr] = {}
    products: dict[relax.Var, relax.Call] = {}
    results: list[relax.Var] = []
    layers: list[Layer] = []

    def stored(builder: relax.BlockBuilder, var: relax.Var) -> relax.Var:
        return builder.emit(quantized(new.get(var, var), numbers.values[var.name]))

    def in_eight_bits(builder: relax.BlockBuilder, layer: Layer) -> relax.Var:
        """Compute a layer in eight bits, and return its result in float."""
        sums = builder.emit(product_of(layer, products[layer.product], stored(builder, layer.x), numbers))
        if not prefix.requantizes(layer):
            return builder.emit(product_in_float(layer, sums, numbers))
        other = None if layer.other is None else stored(builder, layer.other)
        q = builder.emit(result_of(layer, sums, other, numbers))
        return builder.emit(Q.dequantize(q, **vars(numbers.values[layer.result.name])))

    def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
        new[var] = made = builder.emit(value, var.name)
        if var in prefix.layers:
            products[var] = value
        if var in ends:
            lost = builder.emit(R.subtract(in_eight_bits(builder, ends[var]), made))
            layers.append(ends[var])
            for each in (lost, made):
                square = builder.emit(R.multiply(each, each))
                results.append(builder.emit(R.sum(square, list(range(len(shape_of(each)))), keepdims=True)))
        return made

    return rewrite(func, visit, result=lambda _builder, _body: relax.Tuple(results)), layers
