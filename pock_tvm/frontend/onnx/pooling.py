"""Poolings, with ONNX's rules for padding and ``ceil_mode``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, dtype_of, is_float, shape_of

from ..indices import places_of_maxima
from .registry import Node, converter, refuse
from .windows import Window, spatial, window_of


@converter("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node, x: Expr) -> Expr:
    """Pool each channel to one number."""
    axes = list(range(2, len(shape_of(x))))
    return (R.mean if node.schema.name == "GlobalAveragePool" else R.max)(x, axes, keepdims=True)


@converter("MaxPool")
def max_pool(
    node: Node,
    x: Expr,
    *,
    auto_pad: str,
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> list[Expr]:
    """Take the maximum of each window; padding never wins. Also give its flat place in ``x`` if that is read."""
    refuse(not is_float(x), f"it pools {dtype_of(x)}")
    window = window_of(spatial(x), kernel_shape, strides, dilations, pads, auto_pad, ceil=bool(ceil_mode))
    y = _pooled(node, x, window, {2: R.nn.max_pool2d, 3: R.nn.max_pool3d})
    return [y, _places(node, x, window)] if node.wants(1) else [y]


def _places(node: Node, x: Expr, window: Window) -> Expr:
    """Find the flat place in ``x`` of the first maximum of each window."""
    rank = len(window.kernel)
    refuse(rank > 2, f"it gives the places of maxima along {rank} axes; one and two are supported")
    shape, images = shape_of(x), math.prod(shape_of(x)[:2])
    one, none = ([1], [0]) if rank == 1 else ([], [])
    padding = [*none, *window.before, *none, *window.after]
    image = node.emit(R.reshape(x, (*shape[:2], *one, *shape[2:])))
    size, strides, dilations, outputs = (
        [*one, *values] for values in (window.kernel, window.strides, window.dilations, window.outputs)
    )
    inside = places_of_maxima(node.emit, image, size, strides, padding, dilations, outputs)
    first = np.arange(images).reshape(*shape[:2], 1, 1) * math.prod(shape[2:])
    return R.reshape(node.emit(R.add(inside, relax.const(first, "int64"))), (*shape[:2], *window.outputs))


@converter("AveragePool")
def average_pool(
    node: Node,
    x: Expr,
    *,
    auto_pad: str,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Expr:
    """Take the mean of each window: over the image, or with the declared padding."""
    refuse(dilations and any(step != 1 for step in dilations), "its attribute 'dilations' is not supported")
    window = window_of(spatial(x), kernel_shape, strides, None, pads, auto_pad, ceil=bool(ceil_mode))
    operators = {2: R.nn.avg_pool2d, 3: R.nn.avg_pool3d}
    if not any(window.before) and not any(window.after):
        return _pooled(node, x, window, operators)
    # Over a padded image every window has the same count: correct its mean by the count that it should have.
    widths = [0] * 4 + [width for pair in zip(window.before, window.after, strict=True) for width in pair]
    padded = node.emit(R.nn.pad(x, widths))
    none = (0,) * len(window.kernel)
    inner = replace(window, before=none, after=none, declared=none)
    y = node.emit(_pooled(node, padded, inner, operators))
    correction = np.ones((), "float64")
    for axis, extent in enumerate(spatial(x)):
        inside = np.zeros(extent + window.before[axis] + window.after[axis])
        if count_include_pad:
            inside[: extent + window.before[axis] + window.declared[axis]] = 1
        else:
            inside[window.before[axis] : window.before[axis] + extent] = 1
        starts = np.arange(window.outputs[axis]) * window.strides[axis]
        counts = np.stack([inside[start : start + window.kernel[axis]].sum() for start in starts])
        correction = correction[..., None] * (window.kernel[axis] / counts)
    if (correction == 1).all():
        return y
    return R.multiply(y, relax.const(correction.astype(dtype_of(x)), dtype_of(x)))


def _pooled(node: Node, x: Expr, window: Window, operators: dict[int, object]) -> Expr:
    """Pool; one spatial axis becomes an image of height 1."""
    rank = len(window.kernel)
    refuse(rank not in (1, *operators), f"it has {rank} spatial axes; one to three are supported")
    options: dict[str, list[int]] = {
        "pool_size": list(window.kernel),
        "strides": list(window.strides),
        "dilation": list(window.dilations),
        "padding": window.padding,
    }
    if rank == 1:
        begin, end = window.padding
        options = {name: [1, *values] for name, values in options.items()} | {"padding": [0, begin, 0, end]}
        y = node.emit(operators[2](node.emit(R.expand_dims(x, 2)), **options))  # type: ignore[operator]
        return R.squeeze(y, [2])
    return operators[rank](x, **options)  # type: ignore[operator]
