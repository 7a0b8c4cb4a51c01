"""Embedding bags: sums, means or maxima of an embedding's rows."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, constant_value, dtype_of, shape_of

from .registry import Result, Site, Unsupported, converter

SUM, MEAN, MAX = range(3)
"""PyTorch's numbers of the modes."""


@converter("_embedding_bag.default", "_embedding_bag_forward_only.default")
def embedding_bag(
    at: Site,
    weight: Expr,
    indices: Expr,
    offsets: Expr,
    scale_grad_by_freq: bool = False,
    mode: int = SUM,
    per_sample_weights: Expr | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> Result:
    """Reduce the rows of each bag: those from its offset to the next. Index ``padding_idx`` does not count; an empty
    bag gives zeros."""
    if scale_grad_by_freq:
        raise Unsupported("with scale_grad_by_freq=True is not supported")
    at.looked_up(indices, shape_of(weight)[0])
    rows = at.emit(R.take(weight, indices, 0))
    if per_sample_weights is not None:
        rows = at.emit(R.multiply(rows, at.emit(R.expand_dims(per_sample_weights, 1))))
    length = _common_length(offsets, shape_of(indices)[0], include_last_offset)
    if length and padding_idx < 0:
        bags = at.reshape(rows, (at.shape[0], length, at.shape[1]))
        reduced = at.emit({SUM: R.sum, MEAN: R.mean, MAX: R.max}[mode](bags, axis=[1]))
        return [reduced, None, None, None]
    inside = _members(at, indices, offsets, include_last_offset, padding_idx)
    if mode == MAX:
        spread = at.emit(R.where(at.emit(R.expand_dims(inside, 2)), rows, at.cast(-math.inf)))
        largest = at.emit(R.max(spread, axis=[1]))
        filled = at.emit(R.max(at.emit(R.astype(inside, "int8")), axis=[1], keepdims=True))
        return [at.emit(R.where(at.cast(filled, "bool"), largest, at.cast(0))), None, None, None]
    shares = at.emit(R.astype(inside, at.dtype))
    if mode == MEAN:
        count = at.emit(R.maximum(at.emit(R.sum(shares, axis=[1], keepdims=True)), at.cast(1)))
        shares = at.emit(R.divide(shares, count))
    return [at.emit(R.matmul(shares, rows)), None, None, None]


def _common_length(offsets: Expr, count: int, include_last: bool) -> int:
    """The length of all bags, where it is known and the same; 0 otherwise."""
    known = constant_value(offsets)
    if known is None:
        return 0
    lengths = np.diff(known if include_last else [*known, count])
    return int(lengths[0]) if lengths.min() == lengths.max() and lengths.sum() == count else 0


def _members(at: Site, indices: Expr, offsets: Expr, include_last: bool, padding: int) -> Expr:
    """Whether each index [positions] belongs to each bag: bool [bags, positions]."""
    bags, dtype = at.shape[0], dtype_of(offsets)
    places = relax.const(np.arange(shape_of(indices)[0]), dtype)
    last = offsets if include_last else at.emit(R.nn.pad(offsets, [0, 1], "constant", shape_of(indices)[0]))
    first, end = (at.emit(R.expand_dims(at.emit(R.strided_slice(last, [0], [cut], [cut + bags])), 1)) for cut in (0, 1))
    inside = at.emit(R.logical_and(at.emit(R.greater_equal(places, first)), at.emit(R.less(places, end))))
    if padding < 0:
        return inside
    return at.emit(R.logical_and(inside, at.emit(R.not_equal(indices, relax.const(padding, dtype_of(indices))))))
