"""Chooses the numbers of the layers of a frozen prefix: scales, weights in eight bits, fixed-point factors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from tvm import relax

from ..ir import bindings_of, op_name, shape_of
from .fixed_point import (
    LARGEST_WEIGHT,
    EightBits,
    Rescaling,
    Residual,
    Sums,
    Unfit,
    quantized_sums,
    rescaling,
    rescaling_with,
    sums_of_mean,
)
from .frozen_prefix import FrozenPrefix, Layer, frozen_prefix
from .observations import Observations
from .stated_scales import StatedScales

Arrays = Mapping[str, np.ndarray]
"""Frozen weights and biases as layers read them, by name."""


@dataclass
class Numbers:
    """Numbers of the layers in eight bits, by the names of values: those of all functions with these values."""

    excluded: dict[str, str]
    """Layers that stay float beside those that the analysis of the prefix leaves, with the reason."""
    values: dict[str, EightBits] = field(default_factory=dict)
    """Of values that are stored in eight bits."""
    sums: dict[str, Sums] = field(default_factory=dict)
    """By the product."""
    rescalings: dict[str, tuple[Rescaling, Residual | None]] = field(default_factory=dict)
    """By the product, where the result is stored in eight bits."""


def observed(func: relax.Function, trained: Collection[str]) -> list[relax.Var]:
    """Return the values that calibration has to see."""
    found = frozen_prefix(func, trained).eight_bits
    return [var for var in (*func.params, *(binding.var for binding in bindings_of(func))) if var in found]


def needed(func: relax.Function, trained: Collection[str]) -> list[relax.Var]:
    """Return the weights and biases that numbers are chosen from."""
    layers = frozen_prefix(func, trained).layers.values()
    return list(dict.fromkeys(each for layer in layers for each in (layer.weight, layer.bias) if each is not None))


def choose_numbers(
    func: relax.Function,
    trained: Collection[str],
    seen: Mapping[str, Observations],
    arrays: Arrays,
    excluded: Mapping[str, str] = MappingProxyType({}),
    stated: StatedScales = StatedScales(),  # noqa: B008 - immutable
) -> Numbers:
    """Choose the numbers of every layer of a dataflow function in canonical form.

    ``seen`` has the values of :func:`observed`, unless all scales are ``stated`` (by names of this function's values);
    ``arrays`` those of :func:`needed`. ``excluded``: layers that stay float, with the reason. A layer without any
    numbers of 32 bits is added to them.
    """
    excluded = dict(excluded)
    while True:
        numbers, prefix = Numbers(dict(excluded)), frozen_prefix(func, trained, excluded)
        _choose_values(numbers, prefix, func, seen, stated.values)
        failed = {}
        for layer in prefix.layers.values():
            try:
                _choose_layer(numbers, prefix, layer, seen, arrays, stated.weights.get(layer.parameter))
            except Unfit as error:
                failed[layer.name] = str(error)
        if not failed:
            return numbers
        excluded |= failed


def _choose_values(
    numbers: Numbers,
    prefix: FrozenPrefix,
    func: relax.Function,
    seen: Mapping[str, Observations],
    stated: Mapping[str, EightBits],
) -> None:
    """Choose the scales of values, as far as they are stated or were seen."""
    made = {binding.var: binding.value for binding in bindings_of(func)}

    def said(var: relax.Var) -> EightBits | None:
        while var.name not in stated and op_name(made.get(var)) in MOVES:
            var = made[var].args[0]
        return stated.get(var.name)

    def source_of(var: relax.Var) -> relax.Var:
        """Return what a maximum is taken of, where that is in eight bits: both have the same numbers."""
        while op_name(made.get(var)) == "relax.nn.max_pool2d" and made[var].args[0] in prefix.eight_bits:
            var = made[var].args[0]
        return var

    by_name = sorted(prefix.eight_bits, key=lambda var: var.name)
    of_maxima = {source_of(var): each for var in by_name if (each := said(var)) is not None}
    for var in by_name:
        source = source_of(var)
        found = said(source) or of_maxima.get(source)
        if found is not None:
            numbers.values[var.name] = found
        elif source.name in seen and not seen[source.name].is_empty:
            numbers.values[var.name] = seen[source.name].numbers


MOVES = ("relax.nn.max_pool2d", "relax.permute_dims", "relax.reshape", "relax.nn.pad", "relax.squeeze")
"""Operators whose results are numbers of their operands, which a scale is stated of."""


def _choose_layer(
    numbers: Numbers,
    prefix: FrozenPrefix,
    layer: Layer,
    seen: Mapping[str, Observations],
    arrays: Arrays,
    scale: np.ndarray | None,
) -> None:
    """Choose the weights of a layer in eight bits, and how its sums are rescaled. ``scale``: of its weights, if it is
    stated."""
    stores = prefix.requantizes(layer)
    for var in [layer.x, layer.other] if stores else [layer.x]:
        if var is not None and var.name not in numbers.values:
            if var.name in seen:
                raise Unfit("what it reads is zero on all calibration data")
            raise Unfit("the model states no scale of what it reads, and there is no calibration data")
    name = layer.product.name
    sums = numbers.sums[name] = _sums(layer, numbers.values[layer.x.name], seen, arrays, scale)
    result = numbers.values.get(layer.result.name)
    if not stores or result is None:  # without numbers of the result, what reads it stays float
        return
    if layer.other is None:
        numbers.rescalings[name] = rescaling(sums, result), None
    else:
        numbers.rescalings[name] = rescaling_with(sums, result, numbers.values[layer.other.name])


def _sums(
    layer: Layer, x: EightBits, seen: Mapping[str, Observations], arrays: Arrays, scale: np.ndarray | None
) -> Sums:
    """Quantise the weights of a layer, if it has any, and return what its sums mean."""
    if layer.weight is None:
        _, *places, channels = shape_of(layer.x)
        return sums_of_mean(math.prod(places), channels, x)
    bias = None if layer.bias is None else arrays[layer.bias.name].reshape(-1)
    weight = arrays[layer.weight.name]
    mean = seen[layer.x.name].mean if layer.x.name in seen else None
    return quantized_sums(weight, bias, x, mean, None if scale is None else _own_scale(weight, scale))


def _own_scale(weight: np.ndarray, stated: np.ndarray) -> np.ndarray | None:
    """Return the scale that a model states of a weight; None if the weight is no longer made of multiples of it."""
    if stated.size not in (1, weight.shape[-1]):
        return None
    steps = weight / stated
    if np.abs(steps - np.rint(steps)).max() > OFF_GRID:  # a batch norm was folded into it
        return None
    if np.abs(steps).max() > LARGEST_WEIGHT + 1 + OFF_GRID:
        raise Unfit("its weights have a zero point")
    return stated


OFF_GRID = 0.02
"""Most that rounding in float leaves between a weight in steps of its scale and a whole number."""
