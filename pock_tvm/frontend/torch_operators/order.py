"""Operators that sort, and that select by order."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, is_float, shape_of
from relay_passes.operators.training import log1p

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


# ---- running extrema -------------------------------------------------------------------------------------------------


@converter("cummax.default")
def running_maximum(at: Site, x: Expr, dim: int) -> Result:
    """Find the largest value so far along an axis, and its position: the last of ties."""
    return _running(R.greater, at, x, dim)


@converter("cummin.default")
def running_minimum(at: Site, x: Expr, dim: int) -> Result:
    """Find the smallest value so far along an axis, and its position: the last of ties."""
    return _running(R.less, at, x, dim)


def _running(wins: Callable[[Expr, Expr], Expr], at: Site, x: Expr, dim: int) -> Result:
    """Scan positions by doubling. NaN wins over all numbers, and the last NaN over others, as in PyTorch."""
    shape = shape_of(x)
    if not shape:
        return [x, at.cast(0, "int64")]
    axis = normalized(dim, len(shape))
    along = np.arange(shape[axis]).reshape([-1 if place == axis else 1 for place in range(len(shape))])
    best, positions, step = x, at.broadcast(relax.const(along, "int64"), shape), 1
    while step < shape[axis]:
        earlier, own = _pair(at, best, axis, step)
        earlier_positions, own_positions = _pair(at, positions, axis, step)
        takes = at.emit(wins(earlier, own))
        if is_float(x):
            takes = at.emit(R.logical_or(takes, at.emit(R.isnan(earlier))))
            takes = at.emit(R.logical_and(takes, at.emit(R.logical_not(at.emit(R.isnan(own))))))
        best = _behind(at, best, axis, step, at.emit(R.where(takes, earlier, own)))
        positions = _behind(at, positions, axis, step, at.emit(R.where(takes, earlier_positions, own_positions)))
        step *= 2
    return [at.emit(R.gather_elements(x, positions, axis)), positions]


@converter("logcumsumexp.default")
def running_logarithm_of_sum(at: Site, x: Expr, dim: int) -> Expr:
    """``log(cumsum(e^x))`` along an axis, by doubling: no power is larger than 1."""
    if not shape_of(x):
        return x
    axis, step = normalized(dim, len(shape_of(x))), 1
    while step < shape_of(x)[axis]:
        earlier, own = _pair(at, x, axis, step)
        larger = at.emit(R.maximum(earlier, own))
        difference = at.emit(R.where(at.emit(R.equal(earlier, own)), at.cast(0), at.emit(R.subtract(earlier, own))))
        power = at.emit(R.exp(at.emit(R.negative(at.emit(R.abs(difference))))))
        x = _behind(at, x, axis, step, at.emit(R.add(larger, at.emit(log1p(power)))))
        step *= 2
    return x


def _pair(at: Site, x: Expr, axis: int, step: int) -> tuple[Expr, Expr]:
    """Return x without its last ``step`` positions of an axis, and without its first."""
    extent = shape_of(x)[axis]
    first = at.emit(R.strided_slice(x, [axis], [0], [extent - step]))
    return first, at.emit(R.strided_slice(x, [axis], [step], [extent]))


def _behind(at: Site, x: Expr, axis: int, step: int, rest: Expr) -> Expr:
    """Replace all but the first ``step`` positions of an axis."""
    return at.emit(R.concat([at.emit(R.strided_slice(x, [axis], [0], [step])), rest], axis))
