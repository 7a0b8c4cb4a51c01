"""Measures what each layer of a frozen prefix loses in eight bits, alone."""

from __future__ import annotations

from collections.abc import Collection

from tvm import relax
from tvm.relax import op as R

from ..analysis.frozen_prefix import MEAN, Layer, frozen_prefix
from ..analysis.layer_numbers import Numbers
from ..ir import Expr, rewrite, shape_of
from .quantize_frozen import product_in_float, product_of, quantized


def quantize_alone(
    func: relax.Function, trained: Collection[str], numbers: Numbers
) -> tuple[relax.Function, list[Layer]]:
    """Return a function that computes the network in float, and the product of each layer in eight bits beside it, from
    float values.

    Its results are two for each layer, in the order of the list, each of one number: the sum of squares of what the
    product loses, and that of the product in float. The rounding of a value counts for the layers that read it: without
    them it is not rounded. Means are left out: they follow the layers that they read.
    """
    prefix = frozen_prefix(func, trained, numbers.excluded)
    layers = {var: layer for var, layer in prefix.layers.items() if layer.kind != MEAN}
    results: list[relax.Var] = []

    def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
        made = builder.emit(value, var.name)
        if var in layers:
            layer = layers[var]
            x = builder.emit(quantized(value.args[0], numbers.values[layer.x.name]))
            sums = builder.emit(product_of(layer, value, x, numbers))
            lost = builder.emit(R.subtract(product_in_float(layer, sums, numbers), made))
            for each in (lost, made):
                square = builder.emit(R.multiply(each, each))
                results.append(builder.emit(R.sum(square, list(range(len(shape_of(each)))), keepdims=True)))
        return made

    return rewrite(func, visit, result=lambda _builder, _body: relax.Tuple(results)), list(layers.values())
