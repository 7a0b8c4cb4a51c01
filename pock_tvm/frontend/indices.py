"""Indices that a model computes, for the converters of both frameworks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, scalar, shape_of
from relay_passes.operators.training import max_pool2d_argmax

Emit = Callable[[Expr], relax.Var]


def counted_from_front(emit: Emit, index: Expr, extent: int) -> relax.Var:
    """Convert negative indices to positions from the front."""
    behind = emit(R.less(index, scalar(0, index)))
    return emit(R.where(behind, emit(R.add(index, scalar(extent, index))), index))


def where_inside(emit: Emit, index: Expr, extent: int, x: Expr, other: Expr) -> relax.Var:
    """``x`` where an index lies inside an axis, ``other`` elsewhere."""
    front, end = scalar(0, index), scalar(extent, index)
    inside = emit(R.logical_and(emit(R.greater_equal(index, front)), emit(R.less(index, end))))
    return emit(R.where(inside, x, other))


def coordinate(emit: Emit, index: Expr, extent: int, count: int) -> relax.Var:
    """A coordinate from the front, of an element among ``count``.

    Out of bounds it becomes so negative that no flat position, which it makes with others, is inside.
    """
    return where_inside(emit, index, extent, index, scalar(-count, index))


def places_of_maxima(
    emit: Emit,
    image: Expr,
    size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out: Sequence[int],
) -> relax.Var:
    """Find where in its image each of ``out`` windows has its first maximum, counted row by row: int64 [N, C, H', W'].

    ``image`` is [N, C, H, W], ``padding`` all begins, then all ends.
    """
    rows = emit(R.permute_dims(image, [0, 2, 3, 1]))
    geometry = {"pool_size": size, "strides": strides, "padding": padding, "dilation": dilation, "out_size": out}
    tap = emit(max_pool2d_argmax(rows, **{name: list(values) for name, values in geometry.items()}))
    tap = emit(R.astype(emit(R.permute_dims(tap, [0, 3, 1, 2])), "int64"))
    width, columns = shape_of(image)[3], size[1]
    down = emit(R.floor_divide(tap, relax.const(columns, "int64")))
    starts = [np.arange(out[axis]) * strides[axis] - padding[axis] for axis in (0, 1)]
    # row * width + column, where a tap's row is the window's first row plus ``down`` times the dilation
    per_row = dilation[0] * width - dilation[1] * columns
    first = starts[0][:, None] * width + starts[1]
    place = emit(R.add(emit(R.multiply(tap, relax.const(dilation[1], "int64"))), relax.const(first, "int64")))
    return emit(R.add(place, emit(R.multiply(down, relax.const(per_row, "int64")))))
