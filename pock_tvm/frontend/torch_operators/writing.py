"""Operators that write by index: their result is x with other values at some places."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, dtype_of, shape_of
from relay_passes.operators.training import scatter_rows

from .indexing import cut, flat_places
from .movement import permute
from .registry import Number, Site, Unsupported, converter, normalized

WRITE, ADD = "write", "add"
COMBINES = {
    "sum": ADD,
    "mean": ADD,
    "add": ADD,
    "prod": "multiply",
    "multiply": "multiply",
    "amax": "max",
    "amin": "min",
}
"""How an element is combined with those written to it, by PyTorch's names."""
NEUTRAL = {ADD: 0.0, "multiply": 1.0, "max": -math.inf, "min": math.inf}

Put = Callable[[Expr, Expr, str], Expr]
"""Combines x with values at the places of an operator."""


@converter("index_put.default", "_unsafe_index_put.default")
def index_put(at: Site, x: Expr, indices: Sequence[Expr | None], values: Expr, accumulate: bool = False) -> Expr:
    """``x[:, i, j] = values``, or ``+=``; a boolean mask selects in place."""
    values = at.cast(values)
    if any(dtype_of(index) in ("bool", "uint8") for index in indices if index is not None):
        return _put_by_mask(at, x, indices, values, accumulate)
    return _put(at, indices, x, values, ADD if accumulate else WRITE)


def _put_by_mask(at: Site, x: Expr, indices: Sequence[Expr | None], values: Expr, accumulate: bool) -> Expr:
    mask, *others = indices
    if mask is None or any(index is not None for index in others):
        raise Unsupported("with a mask of inner axes, or beside indices, is not supported. Use torch.where")
    inner = len(at.shape) - len(shape_of(mask))
    if math.prod(shape_of(values)) == 1:
        values = at.reshape(values, ())
    elif len(shape_of(values)) > inner:
        raise Unsupported("with a mask and a value for each selected element depends on the data. Use torch.where")
    mask = at.reshape(at.cast(mask, "bool"), shape_of(mask) + (1,) * inner)
    return at.emit(R.where(mask, at.emit(R.add(x, values)) if accumulate else values, x))


def _put(at: Site, indices: Sequence[Expr | None], x: Expr, values: Expr, combine: str) -> Expr:
    """Combine ``x[:, i, j]`` with values. The axes of the indices stand where the first of them does among those of the
    values, or in front if axes between them have no index."""
    rank = len(shape_of(x))
    given = [index for index in indices if index is not None]
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    order = axes + [axis for axis in range(rank) if axis not in axes]
    shape = tuple(shape_of(x)[axis] for axis in order)
    found, rest = np.broadcast_shapes(*map(shape_of, given)), shape[len(axes) :]
    first = axes[0] if axes[-1] - axes[0] == len(axes) - 1 else 0
    values = at.broadcast(values, (*rest[:first], *found, *rest[first:]))
    there = [*range(first, first + len(found))]
    values = permute(at, values, there + [axis for axis in range(len(shape_of(values))) if axis not in there])
    places = at.broadcast(flat_places(at, given, shape[: len(axes)]), found)
    table = (math.prod(shape[: len(axes)]), math.prod(rest))
    y = _combined(at, at.reshape(permute(at, x, order), table), places, values, combine)
    return permute(at, at.reshape(y, shape), [order.index(axis) for axis in range(rank)])


def _combined(at: Site, table: Expr, places: Expr, values: Expr, combine: str) -> Expr:
    """Combine rows of a table with values, by integers from the front of any shape."""
    count = math.prod(shape_of(places))
    rows = at.reshape(values, (count, shape_of(table)[1]))
    return at.emit(scatter_rows(table, at.reshape(places, (count,)), rows, combine=combine))


@converter("index_reduce.default")
def index_reduce(
    at: Site, x: Expr, dim: int, index: Expr, source: Expr, reduce: str, include_self: bool = True
) -> Expr:
    """Combine slices of x along an axis with those of ``source``."""
    shape = shape_of(x)
    if not shape:
        x, index, source = (at.reshape(each, (1,)) for each in (x, index, source))
    indices = [*[None] * normalized(dim, len(shape)), index]
    return at.reshape(_reduced(at, partial(_put, at, indices), x, source, reduce, include_self), shape)


# ---- element by element ----------------------------------------------------------------------------------------------


@converter("scatter.src", "scatter.value", "scatter.reduce", "scatter.value_reduce")
def scatter(
    at: Site,
    x: Expr,
    dim: int,
    index: Expr,
    src: Expr | None = None,
    value: Number | None = None,
    reduce: str | None = None,
) -> Expr:
    """``y = x; y[index[i][j]][j] = src[i][j]``, or combined with what is there."""
    values = at.full(value or 0, shape_of(index)) if src is None else src
    return _scattered(at, dim, index, x, values, WRITE if reduce is None else COMBINES[reduce])


@converter("scatter_add.default")
def scatter_add(at: Site, x: Expr, dim: int, index: Expr, src: Expr) -> Expr:
    """``y = x; y[index[i][j]][j] += src[i][j]``."""
    return _scattered(at, dim, index, x, src, ADD)


@converter("scatter_reduce.two")
def scatter_reduce(at: Site, x: Expr, dim: int, index: Expr, src: Expr, reduce: str, include_self: bool = True) -> Expr:
    """Combine elements of x with those of ``src``; without ``include_self`` the latter alone, where there are any."""
    return _reduced(at, partial(_scattered, at, dim, index), x, src, reduce, include_self)


def _scattered(at: Site, dim: int, index: Expr, x: Expr, values: Expr, combine: str) -> Expr:
    shape, written = shape_of(x) or (1,), shape_of(index) or (1,)
    axis, index = normalized(dim, len(shape)), at.reshape(index, written)
    coordinates: list[Expr] = [
        relax.const(np.arange(extent).reshape([-1 if other == place else 1 for other in range(len(shape))]), "int64")
        for place, extent in enumerate(written)
    ]
    coordinates[axis] = index
    places = at.broadcast(flat_places(at, coordinates, shape), written)
    values = cut(at, at.reshape(at.cast(values), shape_of(values) or (1,)), written)
    return at.reshape(_combined(at, at.reshape(x, (math.prod(shape), 1)), places, values, combine), shape_of(x))


def _reduced(at: Site, put: Put, x: Expr, values: Expr, reduce: str, include_self: bool) -> Expr:
    """Reduce the values at each place, with what x has there or without."""
    combine = COMBINES[reduce]
    if not include_self:
        x = put(x, at.full(NEUTRAL[combine], shape_of(values)), WRITE)
    y = put(x, values, combine)
    if reduce != "mean":
        return y
    own = at.full(1 if include_self else 0, shape_of(x))
    counts = put(own, at.full(1, shape_of(values)), ADD)
    return at.emit(R.divide(y, at.emit(R.maximum(counts, at.cast(1)))))


# ---- by masks --------------------------------------------------------------------------------------------------------


@converter("masked_scatter.default")
def masked_scatter(at: Site, x: Expr, mask: Expr, source: Expr) -> Expr:
    """Write the elements of ``source`` in order to where the mask holds."""
    mask = at.broadcast(at.cast(mask, "bool"))
    count = math.prod(at.shape)
    before = at.emit(R.cumsum(at.emit(R.astype(at.reshape(mask, (count,)), "int64")), 0))
    place = at.emit(R.maximum(at.emit(R.subtract(before, relax.const(1, "int64"))), relax.const(0, "int64")))
    values = at.emit(R.take(at.reshape(at.cast(source), (math.prod(shape_of(source)),)), place, 0))
    return at.emit(R.where(mask, at.reshape(values, at.shape), at.broadcast(x)))


@converter("diagonal_scatter.default")
def diagonal_scatter(at: Site, x: Expr, src: Expr, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Expr:
    """Replace the diagonal of two axes."""
    rank = len(shape_of(x))
    ends = [normalized(dim1, rank), normalized(dim2, rank)]
    order = [axis for axis in range(rank) if axis not in ends] + ends
    height, width = (shape_of(x)[axis] for axis in ends)
    row, column = np.arange(height)[:, None], np.arange(width)[None]
    place = np.clip(np.minimum(row, column), 0, shape_of(src)[-1] - 1)
    values = at.emit(R.take(at.cast(src), relax.const(place, "int64"), rank - 2))
    front = permute(at, x, order)
    y = at.emit(R.where(relax.const(column - row == offset, "bool"), values, front))
    return permute(at, y, [order.index(axis) for axis in range(rank)])
