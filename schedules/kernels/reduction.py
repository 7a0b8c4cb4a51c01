"""Channel sums (bias gradients), variances, and extrema that propagate NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from .functions import is_float, isnan, unless_nan

CHANNEL_SUM = "pock.channel_sum"
"""Schedule rule of a sum for each channel."""


def channel_sum(x: te.Tensor, *, chunks: Sequence[int]) -> te.Tensor:
    """Compute ``Y[c0, c1, .., k] = sum X[.., k]`` over all axes but the last.

    ``chunks``: number of equal parts of each leading axis, a divisor of it. Each part has its own sum.
    """
    *extents, channels = (int(extent) for extent in x.shape)
    lengths = [extent // count for extent, count in zip(extents, [*chunks, *[1] * len(extents)], strict=False)]
    reduced = [te.reduce_axis((0, length), name=f"r{axis}") for axis, length in enumerate(lengths)]

    def total(*index: tirx.Var) -> tirx.Expr:
        starts = [*(chunk * length for chunk, length in zip(index, lengths, strict=False))][: len(chunks)]
        at = [start + axis for start, axis in zip(starts, reduced, strict=False)] + reduced[len(chunks) :]
        return te.sum(x(*at, index[-1]), axis=reduced)

    return te.compute((*chunks, channels), total, name="channel_sum", attrs={"schedule_rule": CHANNEL_SUM})


def largest(x: te.Tensor, *, axes: Sequence[int], keepdims: bool) -> te.Tensor:
    """Compute the maximum along ``axes``; NaN propagates."""
    return _reduced(x, axes, keepdims, lambda at, _place: x(*at), extremum(x.dtype, least=False), "largest")


def smallest(x: te.Tensor, *, axes: Sequence[int], keepdims: bool) -> te.Tensor:
    """Compute the minimum along ``axes``; NaN propagates."""
    return _reduced(x, axes, keepdims, lambda at, _place: x(*at), extremum(x.dtype, least=True), "smallest")


def argmax(x: te.Tensor, *, axes: Sequence[int], keepdims: bool) -> te.Tensor:
    """Return the int64 position of the maximum along ``axes``: the first of equals, or the first NaN."""
    return _first_place(x, largest(x, axes=axes, keepdims=True), axes, keepdims)


def argmin(x: te.Tensor, *, axes: Sequence[int], keepdims: bool) -> te.Tensor:
    """Return the int64 position of the minimum along ``axes``: the first of equals, or the first NaN."""
    return _first_place(x, smallest(x, axes=axes, keepdims=True), axes, keepdims)


def variance(x: te.Tensor, *, axes: Sequence[int], keepdims: bool) -> te.Tensor:
    """Compute the biased variance along ``axes``; exactly 0 where all elements are equal.

    The first element is subtracted from all: the mean of equal elements may round to another value.
    """
    scale = tirx.const(1 / math.prod(int(x.shape[axis]) for axis in axes), x.dtype)

    def shifted(at: Sequence[tirx.Expr]) -> tirx.Expr:
        return x(*at) - x(*(0 if axis in axes else index for axis, index in enumerate(at)))

    total = _reduced(x, axes, True, lambda at, _place: shifted(at), te.sum, "shifted_sum")

    def square(at: Sequence[tirx.Expr], _place: tirx.Expr) -> tirx.Expr:
        difference = shifted(at) - total(*(0 if axis in axes else index for axis, index in enumerate(at))) * scale
        return difference * difference

    squares = _reduced(x, axes, keepdims, square, te.sum, "squares")
    return te.compute(squares.shape, lambda *index: squares(*index) * scale, name="variance")


def std(x: te.Tensor, *, axes: Sequence[int], keepdims: bool) -> te.Tensor:
    """Compute the square root of :func:`variance`."""
    squares = variance(x, axes=axes, keepdims=keepdims)
    return te.compute(squares.shape, lambda *index: tirx.sqrt(squares(*index)), name="std")


def extremum(dtype: str, *, least: bool) -> Callable[..., Any]:
    """Make the reducer of the maximum, or with ``least`` the minimum. NaN propagates."""
    return te.comm_reducer(
        lambda left, right: extreme_of(left, right, least=least), lambda of: worst(of, least), name="extremum"
    )


def extreme_of(left: tirx.Expr, right: tirx.Expr, *, least: bool) -> tirx.Expr:
    """Return the larger of two numbers, or with ``least`` the smaller. NaN propagates."""
    better = tirx.Select(right < left if least else right > left, right, left)
    return unless_nan(right, better) if is_float(right) else better


def worst(dtype: str, least: bool) -> tirx.Expr:
    """Return the identity of the maximum, or with ``least`` the minimum."""
    if str(dtype).startswith(("float", "bfloat")):
        return tirx.const(math.inf if least else -math.inf, dtype)
    return tirx.max_value(dtype) if least else tirx.min_value(dtype)


def _first_place(x: te.Tensor, found: te.Tensor, axes: Sequence[int], keepdims: bool) -> te.Tensor:
    """Return the first position along ``axes`` of the value ``found``. (TVM vectorises reductions of pairs wrongly.)"""
    nowhere = tirx.max_value("int64")

    def element(at: Sequence[tirx.Expr], place: tirx.Expr) -> tirx.Expr:
        value = x(*at)
        is_found = value == found(*(0 if axis in axes else index for axis, index in enumerate(at)))
        if is_float(value):
            is_found = tirx.any(is_found, isnan(value))
        return tirx.Select(is_found, place, nowhere)

    return _reduced(x, axes, keepdims, element, te.min, "place")


def _reduced(
    x: te.Tensor,
    axes: Sequence[int],
    keepdims: bool,
    element: Callable[[Sequence[tirx.Expr], tirx.Expr], tirx.Expr],
    reducer: Callable[..., Any],
    name: str,
) -> te.Tensor:
    """Reduce ``element(index, place)`` along ``axes`` of X; ``place`` is the row-major position along them."""
    extents = [int(extent) for extent in x.shape]
    reduced = {axis: te.reduce_axis((0, extents[axis]), name=f"r{axis}") for axis in axes}
    place: tirx.Expr = tirx.const(0, "int64")
    for axis, variable in reduced.items():
        place = place * extents[axis] + tirx.Cast("int64", variable)
    kept = [axis for axis in range(len(extents)) if keepdims or axis not in reduced]

    def result(*index: tirx.Var) -> Any:
        at = dict(zip(kept, index, strict=True)) | reduced
        return reducer(element([at[axis] for axis in range(len(extents))], place), axis=list(reduced.values()))

    return te.compute([1 if axis in reduced else extents[axis] for axis in kept], result, name=name)
