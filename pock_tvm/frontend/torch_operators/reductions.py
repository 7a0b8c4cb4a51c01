"""Reductions over axes, and operators along an axis: cumulative sums, softmax, sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, dtype_of, shape_of
from relay_passes.operators.training import root, safe_softmax

from .registry import Number, Result, Site, axes_of, converter, normalized

Axes = int | Sequence[int] | None


def _reduced(operator: Callable[..., Expr], at: Site, x: Expr, dim: Axes, keepdim: bool) -> Expr:
    """Reduce over the axes of ``dim``; a scalar stays."""
    axes = axes_of(dim, len(shape_of(x)))
    return at.emit(operator(x, axis=axes, keepdims=keepdim)) if axes else x


@converter("sum.default", "sum.dim_IntList")
def total(at: Site, x: Expr, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Expr:
    """Sum; integers in int64."""
    return _reduced(R.sum, at, at.cast(x), dim, keepdim)


@converter("mean.default", "mean.dim")
def mean(at: Site, x: Expr, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Expr:
    """Take the mean."""
    return _reduced(R.mean, at, at.cast(x), dim, keepdim)


@converter("amax.default", "max.default")
def amax(at: Site, x: Expr, dim: Axes = None, keepdim: bool = False) -> Expr:
    """Take the maximum; ties share its gradient."""
    return _reduced(R.max, at, x, dim, keepdim)


@converter("amin.default", "min.default")
def amin(at: Site, x: Expr, dim: Axes = None, keepdim: bool = False) -> Expr:
    """Take the minimum; ties share its gradient."""
    return _reduced(R.min, at, x, dim, keepdim)


@converter("prod.default", "prod.dim_int")
def product(at: Site, x: Expr, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Expr:
    """Multiply; integers in int64."""
    return _reduced(R.prod, at, at.cast(x), dim, keepdim)


@converter("any.default", "any.dim", "any.dims")
def any_of(at: Site, x: Expr, dim: Axes = None, keepdim: bool = False) -> Expr:
    """Test whether any value is nonzero."""
    return _any(at, at.cast(x, "bool"), dim, keepdim)


@converter("all.default", "all.dim", "all.dims")
def all_of(at: Site, x: Expr, dim: Axes = None, keepdim: bool = False) -> Expr:
    """Test whether all values are nonzero."""
    zero = at.emit(R.logical_not(at.cast(x, "bool")))
    return at.emit(R.logical_not(_any(at, zero, dim, keepdim)))


def _any(at: Site, truth: Expr, dim: Axes, keepdim: bool) -> Expr:
    counts = _reduced(R.max, at, at.emit(R.astype(truth, "int8")), dim, keepdim)
    return at.emit(R.not_equal(counts, relax.const(0, "int8")))


@converter("var.correction")
def variance(at: Site, x: Expr, dim: Axes = None, correction: Number | None = None, keepdim: bool = False) -> Expr:
    """``sum((x - mean)^2) / (n - correction)``; the default correction is 1."""
    axes = axes_of(dim, len(shape_of(x)))
    count = math.prod(shape_of(x)[axis] for axis in axes)
    degrees = count - (1 if correction is None else correction)
    if not axes:  # a scalar has no deviation from its mean
        return at.emit(R.multiply(at.emit(R.subtract(x, x)), at.cast(1 / degrees if degrees > 0 else math.inf)))
    biased = at.emit(R.variance(x, axis=axes, keepdims=keepdim))
    factor = count / degrees if degrees > 0 else math.inf
    return biased if factor == 1 else at.emit(R.multiply(biased, at.cast(factor)))


@converter("std.correction")
def deviation(at: Site, x: Expr, dim: Axes = None, correction: Number | None = None, keepdim: bool = False) -> Expr:
    """Take the square root of the variance; its gradient is 0 where the variance is 0."""
    return at.emit(root(variance(at, x, dim, correction, keepdim), degree=2.0))


@converter("var_mean.correction")
def variance_and_mean(
    at: Site, x: Expr, dim: Axes = None, correction: Number | None = None, keepdim: bool = False
) -> Result:
    """Compute variance and mean."""
    return [variance(at, x, dim, correction, keepdim), _reduced(R.mean, at, x, dim, keepdim)]


@converter("std_mean.correction")
def deviation_and_mean(
    at: Site, x: Expr, dim: Axes = None, correction: Number | None = None, keepdim: bool = False
) -> Result:
    """Compute standard deviation and mean."""
    return [deviation(at, x, dim, correction, keepdim), _reduced(R.mean, at, x, dim, keepdim)]


@converter("linalg_vector_norm.default")
def vector_norm(
    at: Site,
    x: Expr,
    ord: Number = 2,
    dim: Axes = None,
    keepdim: bool = False,
    dtype: Any = None,  # noqa: A002 - schema
) -> Expr:
    """``sum(|x|^p)^(1/p)``; the largest or smallest |x| for p = inf and -inf, the number of nonzeros for p = 0.

    The gradient at zero is zero (``torch/csrc/autograd/FunctionsManual.cpp``, norm_backward).
    """
    x = at.cast(x)
    if ord == 2:
        return at.emit(root(_reduced(R.sum, at, at.emit(R.multiply(x, x)), dim, keepdim), degree=2.0))
    if ord == 0:
        counted = at.emit(R.astype(at.emit(R.not_equal(x, at.cast(0))), at.dtype))
        return _reduced(R.sum, at, counted, dim, keepdim)
    size = at.emit(R.abs(x))
    if ord == 1:
        return _reduced(R.sum, at, size, dim, keepdim)
    if math.isinf(ord):
        return _reduced(R.max if ord > 0 else R.min, at, size, dim, keepdim)
    return at.emit(root(_reduced(R.sum, at, _power_or_zero(at, size, ord), dim, keepdim), degree=float(ord)))


def _power_or_zero(at: Site, size: Expr, exponent: Number) -> Expr:
    """``size ** exponent``, with gradient 0 at zero, where exponents below 1 would give infinity."""
    if not 0 < exponent < 1:
        return at.emit(R.power(size, at.cast(exponent)))
    zero = at.cast(0)
    is_zero = at.emit(R.equal(size, zero))
    powers = at.emit(R.power(at.emit(R.where(is_zero, at.cast(1), size)), at.cast(exponent)))
    return at.emit(R.where(is_zero, zero, powers))


# ---- along an axis ---------------------------------------------------------------------------------------------------


@converter("argmax.default")
def argmax(at: Site, x: Expr, dim: int | None = None, keepdim: bool = False) -> Expr:
    """Find the position of the first maximum."""
    return _position(R.argmax, at, x, dim, keepdim)


@converter("argmin.default")
def argmin(at: Site, x: Expr, dim: int | None = None, keepdim: bool = False) -> Expr:
    """Find the position of the first minimum."""
    return _position(R.argmin, at, x, dim, keepdim)


def _position(operator: Callable[..., Expr], at: Site, x: Expr, dim: int | None, keepdim: bool) -> Expr:
    shape = shape_of(x)
    if not shape:
        return at.cast(0, "int64")
    if dim is None:
        flat = at.emit(operator(at.reshape(x, (math.prod(shape),)), axis=0, keepdims=False))
        return at.reshape(flat, at.shape)
    return at.emit(operator(x, axis=normalized(dim, len(shape)), keepdims=keepdim))


@converter("max.dim")
def max_along(at: Site, x: Expr, dim: int, keepdim: bool = False) -> Result:
    """Find the maximum along an axis and its position; the first of ties gets the whole gradient."""
    return _value_and_position(R.argmax, at, x, dim, keepdim)


@converter("min.dim")
def min_along(at: Site, x: Expr, dim: int, keepdim: bool = False) -> Result:
    """Find the minimum along an axis and its position; the first of ties gets the whole gradient."""
    return _value_and_position(R.argmin, at, x, dim, keepdim)


def _value_and_position(operator: Callable[..., Expr], at: Site, x: Expr, dim: int, keepdim: bool) -> Result:
    shape = shape_of(x)
    if not shape:
        return [x, at.cast(0, "int64")]
    axis = normalized(dim, len(shape))
    position = at.emit(operator(x, axis=axis, keepdims=True))
    value = chosen_along(at, x, position, axis)
    return [value, position] if keepdim else [at.emit(R.squeeze(result, [axis])) for result in (value, position)]


def chosen_along(at: Site, x: Expr, position: Expr, axis: int) -> Expr:
    """Read one position of an axis by a masked sum, whose gradient needs no scatter."""
    places = np.arange(shape_of(x)[axis]).reshape([-1] + [1] * (len(shape_of(x)) - 1 - axis))
    chosen = at.emit(R.equal(relax.const(places, dtype_of(position)), position))
    return at.emit(R.sum(at.emit(R.where(chosen, x, relax.const(0, dtype_of(x)))), axis=[axis], keepdims=True))


@converter("cumsum.default")
def cumulative_sum(at: Site, x: Expr, dim: int, dtype: Any = None) -> Expr:
    """Compute the inclusive cumulative sum."""
    x = at.cast(x)
    return at.emit(R.cumsum(x, normalized(dim, len(shape_of(x))))) if shape_of(x) else x


@converter("cumprod.default")
def cumulative_product(at: Site, x: Expr, dim: int, dtype: Any = None) -> Expr:
    """Compute the inclusive cumulative product."""
    x = at.cast(x)
    return at.emit(R.cumprod(x, normalized(dim, len(shape_of(x))))) if shape_of(x) else x


@converter("softmax.int", "_softmax.default")
def softmax(at: Site, x: Expr, dim: int, dtype: Any = None, half_to_float: bool = False) -> Expr:
    """``e^x / sum(e^x)`` along an axis."""
    x = at.cast(x)
    return at.emit(R.nn.softmax(x, normalized(dim, len(shape_of(x))))) if shape_of(x) else at.cast(1)


@converter("log_softmax.int", "_log_softmax.default")
def log_softmax(at: Site, x: Expr, dim: int, dtype: Any = None, half_to_float: bool = False) -> Expr:
    """``x - log(sum(e^x))`` along an axis."""
    x = at.cast(x)
    return at.emit(R.nn.log_softmax(x, normalized(dim, len(shape_of(x))))) if shape_of(x) else at.cast(0)


@converter("_safe_softmax.default")
def softmax_of_masked(at: Site, x: Expr, dim: int, dtype: Any = None) -> Expr:
    """Compute a softmax that gives zeros for a row of minus infinity."""
    x = at.cast(x)
    rank = len(shape_of(x))
    order = list(range(rank))
    order[normalized(dim, rank)], order[-1] = order[-1], order[normalized(dim, rank)]
    if order == sorted(order):
        return at.emit(safe_softmax(x))
    return at.emit(R.permute_dims(at.emit(safe_softmax(at.emit(R.permute_dims(x, order)))), order))
