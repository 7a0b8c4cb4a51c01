"""Running maxima, minima and sums of exponentials along an axis, by doubling: log2(n) steps for n elements."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, is_float, shape_of
from relay_passes.operators.training import log1p

from .registry import Result, Site, converter, normalized


@converter("cummax.default")
def running_maximum(at: Site, x: Expr, dim: int) -> Result:
    """The largest element so far and its position, the last of equals."""
    return _running_extreme(at, x, dim, R.less)


@converter("cummin.default")
def running_minimum(at: Site, x: Expr, dim: int) -> Result:
    """The smallest element so far and its position, the last of equals."""
    return _running_extreme(at, x, dim, R.greater)


def _running_extreme(at: Site, x: Expr, dim: int, loses: Callable[[Expr, Expr], Expr]) -> Result:
    shape = shape_of(x)
    if not shape:
        return [x, at.cast(0, "int64")]
    axis = normalized(dim, len(shape))
    places = np.arange(shape[axis]).reshape([-1] + [1] * (len(shape) - 1 - axis))
    value: Expr = x
    position: Expr = at.emit(R.broadcast_to(relax.const(places, "int64"), shape))
    step = 1
    while step < shape[axis]:
        earlier, before = (_behind(at, each, axis, step) for each in (value, position))
        stays = at.emit(loses(value, earlier))
        if is_float(x):
            is_number = at.emit(R.logical_not(at.emit(R.isnan(value))))
            stays = at.emit(R.logical_or(stays, at.emit(R.logical_and(at.emit(R.isnan(earlier)), is_number))))
        exists = relax.const(places >= step, "bool")
        stays = at.emit(R.logical_and(stays, exists))
        value, position = at.emit(R.where(stays, earlier, value)), at.emit(R.where(stays, before, position))
        step *= 2
    return [value, position]


@converter("logcumsumexp.default")
def running_log_sum(at: Site, x: Expr, dim: int) -> Expr:
    """``log(sum(e^x))`` of the elements so far."""
    x, shape = at.cast(x), shape_of(x)
    if not shape:
        return x
    axis, step = normalized(dim, len(shape)), 1
    places = np.arange(shape[axis]).reshape([-1] + [1] * (len(shape) - 1 - axis))
    while step < shape[axis]:
        earlier = _behind(at, x, axis, step)
        x = at.emit(R.where(relax.const(places >= step, "bool"), _log_add(at, x, earlier), x))
        step *= 2
    return x


def _log_add(at: Site, x: Expr, y: Expr) -> Expr:
    """``log(e^x + e^y)``; -inf where both are."""
    larger, smaller = at.emit(R.maximum(x, y)), at.emit(R.minimum(x, y))
    none = at.emit(R.equal(smaller, at.cast(-math.inf)))
    difference = at.emit(R.where(none, at.cast(0), at.emit(R.subtract(smaller, larger))))
    total = at.emit(R.add(larger, at.emit(log1p(at.emit(R.exp(difference))))))
    return at.emit(R.where(none, larger, total))


def _behind(at: Site, x: Expr, axis: int, step: int) -> Expr:
    """``x[k - step]`` along an axis; zero before its start."""
    shape = shape_of(x)
    widths = [0] * (2 * len(shape))
    widths[2 * axis] = step
    return at.emit(R.nn.pad(at.emit(R.strided_slice(x, [axis], [0], [shape[axis] - step])), widths))
