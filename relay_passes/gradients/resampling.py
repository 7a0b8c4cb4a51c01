"""Weighted sums of a few positions along an axis."""

from __future__ import annotations

from ..ir import Expr, shape_of
from ..operators.resampling import summed, terms_of
from .registry import Use, gradient


@gradient("pock.resample")
def resample(use: Use) -> Expr:
    """y = M x along an axis, M constant: dx = M^T dy."""
    axis = int(use.call.attrs["axis"])
    results, sources, weights = terms_of(use.call)
    return summed(use.grad, sources, results, weights, shape_of(use.args[0])[axis], axis)
