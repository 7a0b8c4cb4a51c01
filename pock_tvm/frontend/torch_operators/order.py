"""Operators that sort, and that select by order."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, dtype_of, is_float, shape_of

from .reductions import chosen_along
from .registry import Result, Site, Unsupported, common_dtype, converter, normalized


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


# ---- places in a sorted sequence -------------------------------------------------------------------------------------


@converter("searchsorted.Tensor", "searchsorted.Scalar")
def places(
    at: Site,
    sorted_sequence: Expr,
    x: Expr | float,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Expr | None = None,
) -> Expr:
    """Find where numbers belong in sorted ones along the last axis: how many come before them. NaN comes last."""
    if sorter is not None:
        raise Unsupported("with a sorter is not supported: give it the sorted sequence")
    dtype = common_dtype(sorted_sequence, x)
    sequence, x = at.cast(sorted_sequence, dtype), at.cast(x, dtype)
    rows = [*shape_of(sequence)[:-1], 1, shape_of(sequence)[-1]] if len(shape_of(sequence)) > 1 else shape_of(sequence)
    behind = R.greater if right or side == "right" else R.greater_equal
    before = at.emit(R.logical_not(at.emit(behind(at.reshape(sequence, rows), at.reshape(x, (*shape_of(x), 1))))))
    return at.emit(R.sum(at.cast(before, "int32" if out_int32 else "int64"), -1))


@converter("bucketize.Tensor", "bucketize.Scalar")
def buckets(at: Site, x: Expr | float, boundaries: Expr, out_int32: bool = False, right: bool = False) -> Expr:
    """Find the bucket between sorted boundaries that numbers belong to."""
    return places(at, boundaries, x, out_int32, right)


# ---- running extrema -------------------------------------------------------------------------------------------------


@converter("cummax.default")
def running_maximum(at: Site, x: Expr, dim: int) -> Result:
    """Find the largest value so far along an axis, and its position: the last of ties."""
    return _running(R.max, -math.inf, at, x, dim)


@converter("cummin.default")
def running_minimum(at: Site, x: Expr, dim: int) -> Result:
    """Find the smallest value so far along an axis, and its position: the last of ties."""
    return _running(R.min, math.inf, at, x, dim)


def _running(extreme: Callable[..., Expr], worst: float, at: Site, x: Expr, dim: int) -> Result:
    """Find the last position so far at which a value is its own running extreme. NaN is one wherever it stands, as in
    PyTorch."""
    if not shape_of(x):
        return [x, at.cast(0, "int64")]
    axis = normalized(dim, len(shape_of(x)))
    if not is_float(x):
        info = np.iinfo(dtype_of(x))
        worst = info.min if worst < 0 else info.max
    best = at.emit(extreme(_so_far(at, x, axis, worst), [axis + 1]))
    leads = at.emit(R.equal(x, best))
    if is_float(x):
        is_nan = at.emit(R.isnan(x))
        found = at.emit(R.max(_so_far(at, at.emit(R.astype(is_nan, "int32")), axis, 0), [axis + 1]))
        leads = at.emit(R.where(at.emit(R.equal(found, relax.const(1, "int32"))), is_nan, leads))
    along = np.arange(shape_of(x)[axis]).reshape([-1] + [1] * (len(shape_of(x)) - 1 - axis))
    places = at.emit(R.where(leads, relax.const(along, "int64"), relax.const(0, "int64")))
    positions = at.emit(R.max(_so_far(at, places, axis, 0), [axis + 1]))
    return [at.emit(R.gather_elements(x, positions, axis)), positions]


@converter("logcumsumexp.default")
def running_logarithm_of_sum(at: Site, x: Expr, dim: int) -> Expr:
    """``log(cumsum(e^x))`` along an axis: no power is larger than 1, unless it is infinite."""
    if not shape_of(x):
        return x
    axis = normalized(dim, len(shape_of(x)))
    terms = _so_far(at, x, axis, -math.inf)
    largest = at.emit(R.max(terms, [axis + 1], keepdims=True))
    finite = at.emit(R.less(at.emit(R.abs(largest)), at.cast(math.inf)))
    shift = at.emit(R.where(finite, largest, at.cast(0)))
    total = at.emit(R.sum(at.emit(R.exp(at.emit(R.subtract(terms, shift)))), [axis + 1]))
    return at.emit(R.add(at.emit(R.log(total)), at.emit(R.squeeze(shift, [axis + 1]))))


def _so_far(at: Site, x: Expr, axis: int, worst: float) -> Expr:
    """For each position of an axis, all values up to it along the next one: ``worst`` stands for those behind it."""
    extent, behind = shape_of(x)[axis], len(shape_of(x)) - 1 - axis
    reached = relax.const(np.tri(extent, dtype=bool).reshape(extent, extent, *[1] * behind))
    return at.emit(R.where(reached, at.emit(R.expand_dims(x, axis)), relax.const(worst, dtype_of(x))))
