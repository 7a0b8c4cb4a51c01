"""Weighted sums of a few positions along an axis: resizing, means of unequal windows, and the gradients of both."""

from __future__ import annotations

import functools
import operator

from tvm import te, tirx

MOST_UNROLLED = 8
"""Most terms of a sum that is written out, so that the kernel is element-wise."""


def resample(x: te.Tensor, places: te.Tensor, weights: te.Tensor, *, axis: int) -> te.Tensor:
    """Compute ``Y[…, o, …] = sum over t of weights[o, t] * X[…, places[o, t], …]`` along ``axis``.

    ``places``: int32 [positions of Y, terms], -1 for no term. ``weights``: of the same shape, and of X's type.
    """
    count, terms = (int(extent) for extent in places.shape)
    shape = [*x.shape[:axis], count, *x.shape[axis + 1 :]]

    def term(at: tuple[tirx.Expr, ...], t: tirx.Expr | int) -> tirx.Expr:
        place = places(at[axis], t)
        product = weights(at[axis], t) * x(*at[:axis], place, *at[axis + 1 :])
        return tirx.if_then_else(place >= 0, product, tirx.const(0, x.dtype))

    if terms <= MOST_UNROLLED:
        return te.compute(
            shape, lambda *at: functools.reduce(operator.add, (term(at, t) for t in range(terms))), name="resample"
        )
    t = te.reduce_axis((0, terms), name="t")
    return te.compute(shape, lambda *at: te.sum(term(at, t), axis=[t]), name="resample")
