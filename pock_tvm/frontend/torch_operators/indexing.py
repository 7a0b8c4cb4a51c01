"""Operators that read by index."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, constant_value, dtype_of, is_float, shape_of

from ..indices import coordinate, counted_from_front, where_inside
from .movement import permute
from .reductions import chosen_along
from .registry import Site, Unsupported, converter, normalized


@converter("embedding.default")
def embedding(at: Site, weight: Expr, indices: Expr, padding_idx: int = -1, scale_grad_by_freq: bool = False) -> Expr:
    """Look up rows of a table; row ``padding_idx`` gets no gradient."""
    if scale_grad_by_freq:
        raise Unsupported("with scale_grad_by_freq=True is not supported")
    at.looked_up(indices, shape_of(weight)[0])
    rows = at.emit(R.take(weight, indices, 0))
    if padding_idx < 0:
        return rows
    padding = at.emit(R.equal(indices, relax.const(padding_idx, dtype_of(indices))))
    padding = at.emit(R.expand_dims(padding, len(shape_of(indices))))
    return at.emit(R.where(padding, at.emit(R.grad.no_grad(rows)), rows))


@converter("index_select.default")
def index_select(at: Site, x: Expr, dim: int, index: Expr) -> Expr:
    """Read positions of an axis."""
    if not shape_of(x):
        return x
    axis = normalized(dim, len(shape_of(x)))
    at.looked_up(index, shape_of(x)[axis])
    return at.emit(R.take(x, at.reshape(index, (math.prod(shape_of(index)),)), axis))


@converter("take.default")
def take(at: Site, x: Expr, index: Expr) -> Expr:
    """Read elements by their flat position."""
    count = math.prod(shape_of(x))
    return at.emit(R.take(at.reshape(x, (count,)), _from_front(at, index, count), 0))


@converter("gather.default")
def gather(at: Site, x: Expr, dim: int, index: Expr, sparse_grad: bool = False) -> Expr:
    """``y[i][j] = x[index[i][j]][j]``; other axes may be shorter than those of x."""
    if not shape_of(x) or not shape_of(index):
        return at.reshape(x, at.shape) if math.prod(shape_of(x)) == 1 else index_select(at, x, dim, index)
    axis = normalized(dim, len(shape_of(x)))
    at.looked_up(index, shape_of(x)[axis])
    x = cut(at, x, [shape_of(x)[axis] if other == axis else extent for other, extent in enumerate(shape_of(index))])
    if shape_of(index)[axis] == 1 and is_float(x):  # the label of each sample
        return _or_nan(at, chosen_along(at, x, index, axis), index, shape_of(x)[axis])
    return at.emit(R.gather_elements(x, index, axis))


def _or_nan(at: Site, x: Expr, index: Expr, extent: int) -> Expr:
    """Replace values read out of bounds by NaN; PyTorch raises there."""
    if constant_value(index) is not None:
        return x
    return where_inside(at.emit, index, extent, x, at.cast(math.nan))


def cut(at: Site, x: Expr, shape: Sequence[int]) -> Expr:
    """Cut x to ``shape``, from the start of each axis."""
    longer = [axis for axis, (extent, wanted) in enumerate(zip(shape_of(x), shape, strict=True)) if extent > wanted]
    return at.emit(R.strided_slice(x, longer, [0] * len(longer), [shape[a] for a in longer])) if longer else x


@converter("index.Tensor", "_unsafe_index.Tensor")
def index_tensors(at: Site, x: Expr, indices: Sequence[Expr | None]) -> Expr:
    """``x[:, i, j]``: index tensors are coordinates. Their axes replace the first indexed axis;
    they come first if indexed axes are not adjacent."""
    rank = len(shape_of(x))
    used = [axis for axis, index in enumerate(indices) if index is not None]
    given = [index for index in indices if index is not None]
    shorter = [at.unrepeated(index) for index in given]
    if np.broadcast_shapes(*map(shape_of, shorter)) == np.broadcast_shapes(*map(shape_of, given)):
        given = shorter
    if any(dtype_of(index) in ("bool", "uint8") for index in given):
        raise Unsupported(
            "with a mask gives a shape that depends on the data. Use torch.where or a product with the mask"
        )
    first = used[0]
    if used != list(range(first, used[-1] + 1)):
        x, first = permute(at, x, used + [axis for axis in range(rank) if axis not in used]), 0
    shape = shape_of(x)
    extents = shape[first : first + len(used)]
    places = _from_front_each(at, given, extents)
    if _is_grid(places):
        for axis, place in enumerate(places, first):
            x = _read(at, x, at.reshape(place, (math.prod(shape_of(place)),)), axis)
        return at.reshape(x, at.shape)
    merged = at.reshape(x, (*shape[:first], math.prod(extents), *shape[first + len(used) :]))
    return at.emit(R.take(merged, _flat(at, places, extents), first))


def flat_places(at: Site, indices: Sequence[Expr], extents: Sequence[int]) -> Expr:
    """Flat positions of elements from their coordinates along axes of these extents. One that is out of bounds gives a
    position out of bounds."""
    return _flat(at, _from_front_each(at, indices, extents), extents)


def _from_front_each(at: Site, indices: Sequence[Expr], extents: Sequence[int]) -> list[Expr]:
    among = math.prod(extents) if len(indices) > 1 else None
    return [_from_front(at, index, extent, among) for index, extent in zip(indices, extents, strict=True)]


def _flat(at: Site, places: Sequence[Expr], extents: Sequence[int]) -> Expr:
    place = places[0]
    for index, extent in zip(places[1:], extents[1:], strict=True):
        place = _plus(at, _times(at, place, extent), index)
    return place


def _is_grid(places: Sequence[Expr]) -> bool:
    """Check whether each index varies along an axis of its own, in order, so that axes can be read one by one."""
    rank = max(len(shape_of(place)) for place in places)
    along = [
        [rank - len(shape_of(place)) + axis for axis, extent in enumerate(shape_of(place)) if extent > 1]
        for place in places
    ]
    order = [axis for axes in along for axis in axes]
    return all(len(axes) <= 1 for axes in along) and order == sorted(set(order))


def _read(at: Site, x: Expr, places: Expr, axis: int) -> Expr:
    """Read positions of an axis; return x if they are all positions in order."""
    known = constant_value(places)
    if known is not None and np.array_equal(known, np.arange(shape_of(x)[axis])):
        return x
    return at.emit(R.take(x, places, axis))


def _from_front(at: Site, index: Expr, extent: int, count: int | None = None) -> Expr:
    """Convert negative indices to positions from the front. With ``count``, the index is one of several coordinates
    of ``count`` elements."""
    known = constant_value(index)
    if known is not None:
        if known.size and not (-extent <= known.min() and known.max() < extent):
            raise Unsupported(f"reads position {known.max()} of {extent}")
        return relax.const(np.where(known < 0, known + extent, known), "int64")
    at.looked_up(index, extent, from_end=True)
    index = counted_from_front(at.emit, at.cast(index, "int64"), extent)
    return index if count is None else coordinate(at.emit, index, extent, count)


def _plus(at: Site, x: Expr, y: Expr) -> Expr:
    a, b = constant_value(x), constant_value(y)
    return at.emit(R.add(x, y)) if a is None or b is None else relax.const(a + b, "int64")


def _times(at: Site, x: Expr, factor: int) -> Expr:
    known = constant_value(x)
    return at.emit(x * relax.const(factor, "int64")) if known is None else relax.const(known * factor, "int64")
