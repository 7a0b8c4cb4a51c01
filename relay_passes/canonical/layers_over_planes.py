"""Calls that compute layers in eight bits over planes of words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from schedules.kernels.plane_taps import PIXELS, Window
from schedules.kernels.quantized import WORD

from ..analysis.fixed_point import EightBits, packed, row_taps_in_words
from ..analysis.frozen_prefix import DEPTHWISE, MATMUL, MEAN, Layer
from ..analysis.layer_numbers import Numbers
from ..ir import Expr, shape_of
from ..operators import word_planes as P
from ..operators.registry import plain

FEWEST_PIXELS = PIXELS // 2
"""Fewest pixels of an image whose planes are worth their vectors: with fewer, most lanes would be empty."""


@dataclass(frozen=True)
class PlanesLayer:
    """A convolution whose operands are planes of words."""

    weight: np.ndarray
    options: dict[str, Any]
    """Attributes of its call."""
    size: tuple[int, int]
    """Rows and columns of its result."""

    def result(self, layer: Layer, x: Expr, other: Expr | None, numbers: Numbers) -> relax.Call:
        """Compute the result of a layer from its input, and from its residual."""
        vectors, residual = numbers.rescalings[layer.product.name]
        operands = [x, relax.const(self.weight), *map(relax.const, vectors.vectors())]
        if residual is None or other is None:
            return P.planes_layer(*operands, zero_of_result=numbers.values[layer.result.name].zero, **self.options)
        return P.planes_layer_sum(*operands, other, **vars(residual), **self.options)

    def in_float(self, builder: relax.BlockBuilder, x: Expr, layer: Layer, numbers: Numbers) -> relax.Call:
        """Compute the product of a layer in float."""
        sums = builder.emit(P.planes_sums(x, relax.const(self.weight), **self.options), layer.product.name)
        found = numbers.sums[layer.product.name]
        vectors = found.zero_bias.astype(np.int32), found.scale.astype(np.float32)
        return P.dequantize_plane_sums(sums, *map(relax.const, vectors), size=self.size)


def planes_layer_of(layer: Layer, call: relax.Call, numbers: Numbers) -> PlanesLayer | None:
    """Return how a layer is computed over planes; None if its taps do not suit them. ``call`` is its product in
    float."""
    if layer.kind in (MATMUL, MEAN):
        return None
    weight, (_, height, width, _) = numbers.sums[layer.product.name].weight, shape_of(layer.x)
    strides, padding, dilation = (tuple(plain(getattr(call.attrs, key))) for key in ("strides", "padding", "dilation"))
    taps = weight.shape[:2]
    window = Window(height, width, taps, strides, padding)
    is_small = min(height * width, math.prod(window.result)) < FEWEST_PIXELS
    if is_small or not window.fits or any(count > 1 and step > 1 for count, step in zip(taps, dilation, strict=True)):
        return None
    is_depthwise = layer.kind == DEPTHWISE
    whole = np.pad(weight, [(0, 0)] * 3 + [(0, -weight.shape[3] % WORD)])
    options = {
        "size": (height, width), "taps": taps, "strides": strides, "padding": padding,
        "zero": numbers.values[layer.x.name].zero, "depthwise": is_depthwise,
    }  # fmt: skip
    return PlanesLayer(row_taps_in_words(weight) if is_depthwise else packed(whole), options, window.result)


def planes_of_floats(x: Expr, numbers: EightBits) -> relax.Call:
    """Store a float value [N, H, W, C] as planes of words."""
    return P.quantize_planes(x, inverse=float(np.float32(1 / numbers.scale)), zero=numbers.zero)
