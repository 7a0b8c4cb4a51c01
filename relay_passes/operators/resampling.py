"""Weighted sums of a few positions along an axis: a product with a constant, mostly empty matrix."""

from __future__ import annotations

import numpy as np
from tvm import relax

from schedules.kernels.resampling import resample as kernel

from ..errors import PassError
from ..ir import Expr, constant_value, dtype_of, shape_of
from .registry import register_operator


def _type(call: relax.Call) -> relax.TensorType:
    shape, axis = list(shape_of(call.args[0])), int(call.attrs["axis"])
    shape[axis] = shape_of(call.args[1])[0]
    return relax.TensorType(shape, dtype_of(call.args[0]))


resample = register_operator("pock.resample", ["x", "places", "weights"], _type, kernel)


def resampled(x: Expr, matrix: np.ndarray, axis: int) -> relax.Call:
    """Multiply ``x`` along ``axis`` by a matrix [positions of the result, positions of x]; zeros cost nothing."""
    results, sources = np.nonzero(matrix)
    return summed(x, results, sources, matrix[results, sources].astype(dtype_of(x)), len(matrix), axis)


def summed(x: Expr, results: np.ndarray, sources: np.ndarray, weights: np.ndarray, count: int, axis: int) -> relax.Call:
    """Add ``weights[i] * x[sources[i]]`` to position ``results[i]`` of ``count`` along ``axis``, for every i. The
    weights have the type of ``x``."""
    order = np.argsort(results, kind="stable")
    results, sources, weights = results[order], sources[order], weights[order]
    terms = np.bincount(results, minlength=count)
    term = np.arange(len(results)) - (np.cumsum(terms) - terms)[results]
    places = np.full((count, max(1, int(terms.max(initial=0)))), -1, "int32")
    factors = np.zeros(places.shape, weights.dtype)
    places[results, term], factors[results, term] = sources, weights
    return resample(x, relax.const(places), relax.const(factors), axis=axis)


def terms_of(call: relax.Call) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return results, sources and weights of a call, as :func:`summed` takes them."""
    places, weights = (constant_value(arg) for arg in call.args[1:])
    if places is None or weights is None:
        raise PassError("the terms of 'pock.resample' are no constants, as its gradient rule needs")
    results, terms = np.nonzero(places >= 0)
    return results, places[results, terms], weights[results, terms]
