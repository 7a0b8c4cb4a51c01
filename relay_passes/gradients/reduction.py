"""Reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm.relax import op as R

from ..ir import Expr, normalized_axes, scalar, shape_of
from .registry import Use, gradient


def _reduced_axes(use: Use) -> tuple[int, ...]:
    axes = use.call.attrs.axis
    return normalized_axes(None if axes is None else list(axes), len(shape_of(use.args[0])))


def _count(use: Use) -> int:
    shape = shape_of(use.args[0])
    return math.prod(shape[axis] for axis in _reduced_axes(use))


def _kept(use: Use, value: Expr) -> Expr:
    """Reshape a value of the result's shape so that the reduced axes are kept, with extent 1."""
    axes = _reduced_axes(use)
    shape = tuple(1 if axis in axes else extent for axis, extent in enumerate(shape_of(use.args[0])))
    return value if shape == shape_of(use.result) else R.reshape(value, shape)


@gradient("relax.sum")
def total(use: Use) -> Expr:
    """y = sum(x): dx = dy everywhere."""
    return R.broadcast_to(_kept(use, use.grad), shape_of(use.args[0]))


@gradient("relax.mean")
def mean(use: Use) -> Expr:
    """y = sum(x) / n: dx = dy / n everywhere."""
    return R.broadcast_to(_kept(use, use.grad * scalar(1 / _count(use), use.result)), shape_of(use.args[0]))


def _extremum(use: Use) -> Expr:
    """Share the gradient among all elements equal to the extremum, as in PyTorch's ``amax``."""
    x = use.args[0]
    is_extremum = R.astype(R.equal(x, _kept(use, use.result)), str(x.ty.dtype.dtype))
    count = R.sum(is_extremum, axis=list(_reduced_axes(use)), keepdims=True)
    return is_extremum * (_kept(use, use.grad) / count)


@gradient("relax.max")
def largest(use: Use) -> Expr:
    """y = max(x): dx = dy / (number of maxima) at each maximum."""
    return _extremum(use)


@gradient("relax.min")
def smallest(use: Use) -> Expr:
    """y = min(x): dx = dy / (number of minima) at each minimum."""
    return _extremum(use)


@gradient("relax.variance")
def variance(use: Use) -> Expr:
    """y = sum((x - m)^2) / n: dx = dy * 2 (x - m) / n."""
    x = use.args[0]
    centered = x - R.mean(x, axis=list(_reduced_axes(use)), keepdims=True)
    return centered * _kept(use, use.grad * scalar(2 / _count(use), x))


@gradient("relax.std")
def deviation(use: Use) -> Expr:
    """y = sqrt(sum((x - m)^2) / n): dx = dy * (x - m) / (n y), and 0 where y = 0, as in PyTorch."""
    x, y = use.args[0], use.result
    centered = x - R.mean(x, axis=list(_reduced_axes(use)), keepdims=True)
    share = R.where(R.equal(y, scalar(0, y)), scalar(0, y), use.grad * scalar(1 / _count(use), y) / y)
    return centered * _kept(use, share)


@gradient("relax.prod")
def product(use: Use) -> Expr:
    """y = the product of x: dx = dy * the product of all other elements, which may be zero."""
    x, shape, axes = use.args[0], shape_of(use.args[0]), _reduced_axes(use)
    if not axes:
        return use.grad
    others = [axis for axis in range(len(shape)) if axis not in axes]
    order, rest = [*others, *axes], [shape[axis] for axis in others]
    rows = R.reshape(R.permute_dims(x, order), (*rest, _count(use)))
    last = len(rest)
    before = R.cumprod(rows, last, exclusive=True)
    after = R.flip(R.cumprod(R.flip(rows, last), last, exclusive=True), last)
    turned = R.reshape(before * after, [shape[axis] for axis in order])
    return _kept(use, use.grad) * R.permute_dims(turned, [order.index(axis) for axis in range(len(shape))])


@gradient("relax.cumprod")
def cumprod(use: Use) -> Expr:
    """y[i] = prod_{j <= i} x[j]: dx[k] = prod_{j < k} x[j] * s[k] with s[k] = dy[k] + x[k + 1] * s[k + 1].

    The recurrence is solved by doubling, without a division: x may be zero.
    """
    x, axis = use.args[0], int(use.call.attrs.axis)
    shape, step = shape_of(x), 1
    total, factor = use.grad, _ahead(x, shape, axis, 1)
    while step < shape[axis]:
        total = total + factor * _ahead(total, shape, axis, step)
        factor = factor * _ahead(factor, shape, axis, step)
        step *= 2
    return R.cumprod(x, axis, exclusive=True) * total


def _ahead(x: Expr, shape: Sequence[int], axis: int, step: int) -> Expr:
    """x[k + step] along an axis, 0 behind its end. ``shape``: that of x, which may have no type yet."""
    widths = [0] * (2 * len(shape))
    widths[2 * axis + 1] = step
    return R.nn.pad(R.strided_slice(x, [axis], [step], [shape[axis]]), widths)


@gradient("relax.cumsum")
def cumsum(use: Use) -> Expr:
    """y[i] = sum_{j <= i} x[j]: dx[j] = sum_{i >= j} dy[i]."""
    axis = use.call.attrs.axis
    axis = 0 if axis is None else int(axis)
    summed = R.flip(R.cumsum(R.flip(use.grad, axis), axis), axis)
    return R.reshape(summed, shape_of(use.args[0]))
