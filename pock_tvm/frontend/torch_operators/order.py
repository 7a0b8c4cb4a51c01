"""Operators that sort, and that select by order."""

from __future__ import annotations

import math

from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, shape_of

from .reductions import chosen_along
from .registry import Result, Site, Unsupported, converter, normalized


@converter("sort.default", "sort.stable")
def sort(at: Site, x: Expr, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Result:
    """Sort along an axis; return values and positions."""
    axis = normalized(dim, len(shape_of(x)))
    if not shape_of(x):
        return [x, at.cast(0, "int64")]
    positions = at.emit(R.argsort(x, axis, descending, "int64"))
    return [at.emit(R.gather_elements(x, positions, axis)), positions]


@converter("topk.default")
def top(at: Site, x: Expr, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Result:  # noqa: A002
    """Find the k largest or smallest values along an axis; return values and positions."""
    if not shape_of(x):
        raise Unsupported("of a single number is not supported")
    axis = normalized(dim, len(shape_of(x)))
    positions = at.emit(R.topk(x, k, axis, "indices", largest, "int64"))
    return [at.emit(R.gather_elements(x, positions, axis)), positions]


@converter("kthvalue.default")
def kth_smallest(at: Site, x: Expr, k: int, dim: int = -1, keepdim: bool = False) -> Result:
    """Find the k-th smallest value along an axis, counted from 1, and its position."""
    if not shape_of(x):
        return [x, at.cast(0, "int64")]
    axis = normalized(dim, len(shape_of(x)))
    order = at.emit(R.argsort(x, axis, False, "int64"))
    position = at.emit(R.strided_slice(order, [axis], [k - 1], [k]))
    value = chosen_along(at, x, position, axis)
    return [value, position] if keepdim else [at.emit(R.squeeze(each, [axis])) for each in (value, position)]


@converter("median.dim")
def median_along(at: Site, x: Expr, dim: int, keepdim: bool = False) -> Result:
    """Find the lower median along an axis and its position."""
    extent = shape_of(x)[normalized(dim, len(shape_of(x)))] if shape_of(x) else 1
    return kth_smallest(at, x, (extent + 1) // 2, dim, keepdim)


@converter("median.default")
def median(at: Site, x: Expr) -> Expr:
    """Find the lower median of all elements."""
    flat = at.reshape(x, (math.prod(shape_of(x)),))
    value = median_along(at, flat, 0)
    assert not isinstance(value, relax.Expr)
    return value[0]
