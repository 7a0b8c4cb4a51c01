"""Normalisation and its gradient: one pair for layer, RMS, group, instance and batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import te, tirx


def normalize(x: te.Tensor, *, axes: Sequence[int], epsilon: float, center: bool) -> te.Tensor:
    """Compute ``(x - mean(x)) / sqrt(var(x) + epsilon)``, mean and (biased) variance over ``axes``.

    Without ``center`` the mean counts as zero: RMS norm. The variance sums squared deviations from the mean, to avoid
    cancellation.
    """
    mean, deviation = _statistics(x, axes, epsilon, center)
    return te.compute(
        x.shape, lambda *index: _centered(x, mean, axes, index) * deviation(*_kept(index, axes)), name="normalize"
    )


def normalize_gradient(
    x: te.Tensor, grad: te.Tensor, *, axes: Sequence[int], epsilon: float, center: bool
) -> te.Tensor:
    """Compute ``dX = (dY - mean(dY) - Y * mean(dY * Y)) / sqrt(var(x) + epsilon)`` with Y = normalize(X).

    Without ``center`` there is no mean(dY). Recomputes the statistics from X, so that a step need not keep Y. (Ba et
    al., Layer Normalization, 2016.)
    """
    mean, deviation = _statistics(x, axes, epsilon, center)

    def normalized(index: Sequence[tirx.Expr]) -> tirx.Expr:
        return _centered(x, mean, axes, index) * deviation(*_kept(index, axes))

    along = _mean(x, axes, lambda *index: grad(*index) * normalized(index), "grad_along")
    average = _mean(x, axes, grad, "grad_mean") if center else None

    def dx(*index: tirx.Expr) -> tirx.Expr:
        kept = _kept(index, axes)
        centered = grad(*index) - average(*kept) if average is not None else grad(*index)
        return (centered - normalized(index) * along(*kept)) * deviation(*kept)

    return te.compute(x.shape, dx, name="normalize_gradient")


def _statistics(x: te.Tensor, axes: Sequence[int], epsilon: float, center: bool) -> tuple[te.Tensor | None, te.Tensor]:
    mean = _mean(x, axes, x, "mean") if center else None
    variance = _mean(x, axes, lambda *index: _square(_centered(x, mean, axes, index)), "variance")
    deviation = te.compute(
        variance.shape,
        lambda *index: tirx.const(1, x.dtype) / tirx.sqrt(variance(*index) + tirx.const(epsilon, x.dtype)),
        name="deviation",
    )
    return mean, deviation


def _mean(x: te.Tensor, axes: Sequence[int], value: Callable[..., tirx.Expr], name: str) -> te.Tensor:
    """Compute the mean of ``value(*index)`` over ``axes``, which are dropped."""
    extents = [int(extent) for extent in x.shape]
    reduced = {axis: te.reduce_axis((0, extents[axis]), name=f"r{axis}") for axis in axes}
    kept = [axis for axis in range(len(extents)) if axis not in reduced]
    count = math.prod(extents[axis] for axis in axes)

    def index_of(outer: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        at = dict(zip(kept, outer, strict=True)) | reduced
        return [at[axis] for axis in range(len(extents))]

    total = te.compute(
        [extents[axis] for axis in kept],
        lambda *outer: te.sum(value(*index_of(outer)), axis=list(reduced.values())),
        name=f"{name}_sum",
    )
    return te.compute(total.shape, lambda *outer: total(*outer) / tirx.const(count, x.dtype), name=name)


def _kept(index: Sequence[tirx.Expr], axes: Sequence[int]) -> list[tirx.Expr]:
    return [at for axis, at in enumerate(index) if axis not in axes]


def _centered(x: te.Tensor, mean: te.Tensor | None, axes: Sequence[int], index: Sequence[tirx.Expr]) -> tirx.Expr:
    return x(*index) if mean is None else x(*index) - mean(*_kept(index, axes))


def _square(value: tirx.Expr) -> tirx.Expr:
    return value * value
