"""Operators that move, repeat or join elements, and that make tensors of a shape alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, shape_of

from .registry import Number, Result, Site, converter, normalized


@converter(
    *("view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unflatten.int"),
    *("squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "view_copy.default"),
)
def reshape(
    at: Site,
    x: Expr,
    size: Any = None,
    shape: Any = None,
    dim: Any = None,
    start_dim: Any = None,
    end_dim: Any = None,
    sizes: Any = None,
) -> Expr:
    """Reshape to the result's shape, as PyTorch computed it."""
    return at.reshape(x, at.shape)


@converter("permute.default")
def permute(at: Site, x: Expr, dims: Sequence[int]) -> Expr:
    """Permute axes."""
    rank = len(shape_of(x))
    order = [normalized(axis, rank) for axis in dims]
    return x if order == list(range(rank)) else at.emit(R.permute_dims(x, order))


@converter("transpose.int")
def transpose(at: Site, x: Expr, dim0: int, dim1: int) -> Expr:
    """Swap two axes."""
    order = list(range(len(shape_of(x))))
    if order:
        first, second = (normalized(axis, len(order)) for axis in (dim0, dim1))
        order[first], order[second] = order[second], order[first]
    return permute(at, x, order)


@converter("t.default")
def transposed(at: Site, x: Expr) -> Expr:
    """Transpose a matrix."""
    return permute(at, x, list(range(len(shape_of(x))))[::-1])


@converter("expand.default", "broadcast_to.default")
def expand(at: Site, x: Expr, size: Sequence[int]) -> Expr:
    """Broadcast x to the result's shape."""
    return at.broadcast(x)


@converter("repeat.default")
def repeat(at: Site, x: Expr, repeats: Sequence[int]) -> Expr:
    """Tile x along each axis."""
    x = at.reshape(x, (1,) * (len(repeats) - len(shape_of(x))) + shape_of(x))
    return x if all(count == 1 for count in repeats) else at.emit(R.tile(x, list(repeats)))


@converter("select.int")
def select(at: Site, x: Expr, dim: int, index: int) -> Expr:
    """Select one position of an axis."""
    axis = normalized(dim, len(shape_of(x)))
    return at.emit(R.take(x, relax.const(normalized(index, shape_of(x)[axis]), "int64"), axis))


@converter("slice.Tensor")
def slice_of(at: Site, x: Expr, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Expr:
    """Slice an axis with a step."""
    axis = normalized(dim, len(shape_of(x)))
    extent = shape_of(x)[axis]
    first, last, _ = slice(start, end, step).indices(extent)
    return _part(at, x, axis, first, max(first, last), step)


def _part(at: Site, x: Expr, axis: int, first: int, last: int, step: int = 1) -> Expr:
    if (first, last, step) == (0, shape_of(x)[axis], 1):
        return x
    return at.emit(R.strided_slice(x, [axis], [first], [last], [step]))


@converter("split_with_sizes.default", "split_with_sizes_copy.default")
def split_with_sizes(at: Site, x: Expr, split_sizes: Sequence[int], dim: int = 0) -> Result:
    """Split an axis into parts of given sizes. Parts without elements are folded, and not made here."""
    axis = normalized(dim, len(shape_of(x)))
    ends = np.cumsum([size for size in split_sizes if size]).tolist()
    split = at.emit(R.split(x, ends[:-1], axis)) if len(ends) > 1 else None
    parts = iter([x] if split is None else [at.emit(relax.TupleGetItem(split, index)) for index in range(len(ends))])
    return [next(parts) if size else None for size in split_sizes]


@converter("split.Tensor")
def split(at: Site, x: Expr, split_size: int, dim: int = 0) -> Result:
    """Split an axis into parts of equal size; the last may be smaller."""
    sizes = [shape[normalized(dim, len(shape))] for shape, _ in at.types]
    return split_with_sizes(at, x, sizes, dim)


@converter("unbind.int")
def unbind(at: Site, x: Expr, dim: int = 0) -> Result:
    """Split an axis into its positions. Many, as in a loop over time, are parts of one split: their gradients are then
    joined once, and not each added to all the others."""
    axis = normalized(dim, len(shape_of(x)))
    if len(at.types) < MANY:
        return [select(at, x, dim, index) for index in range(len(at.types))]
    parts = at.emit(R.split(x, len(at.types), axis))
    return [at.reshape(at.emit(relax.TupleGetItem(parts, index)), at.shape) for index in range(len(at.types))]


MANY = 8
"""Fewest positions of an axis that are split at once."""


@converter("cat.default")
def concatenate(at: Site, tensors: Sequence[Expr], dim: int = 0) -> Expr:
    """Concatenate along an axis; PyTorch skips empty vectors."""
    parts = [at.cast(part) for part in tensors if shape_of(part) != (0,) or len(at.shape) == 1]
    parts = [part for part in parts if 0 not in shape_of(part)] or parts[:1]
    return parts[0] if len(parts) == 1 else at.emit(R.concat(parts, axis=normalized(dim, len(at.shape))))


@converter("stack.default")
def stack(at: Site, tensors: Sequence[Expr], dim: int = 0) -> Expr:
    """Stack along a new axis."""
    axis = normalized(dim, len(at.shape))
    parts = [at.emit(R.expand_dims(at.cast(part), axis)) for part in tensors]
    return parts[0] if len(parts) == 1 else at.emit(R.concat(parts, axis=axis))


@converter("flip.default")
def flip(at: Site, x: Expr, dims: Sequence[int]) -> Expr:
    """Reverse axes."""
    for dim in dims:
        x = at.emit(R.flip(x, normalized(dim, len(shape_of(x)))))
    return x


@converter("roll.default")
def roll(at: Site, x: Expr, shifts: Sequence[int], dims: Sequence[int] = ()) -> Expr:
    """Rotate axes; without axes, the flattened tensor."""
    shape = shape_of(x)
    if not dims:
        row = roll(at, at.reshape(x, (math.prod(shape),)), shifts, [0])
        return at.reshape(row, shape)
    for shift, dim in zip(shifts, dims, strict=True):
        axis = normalized(dim, len(shape))
        at_front = shift % shape[axis] if shape and shape[axis] else 0
        if at_front:
            cut = shape[axis] - at_front
            x = at.emit(R.concat([_part(at, x, axis, cut, shape[axis]), _part(at, x, axis, 0, cut)], axis=axis))
    return x


@converter("constant_pad_nd.default")
def constant_pad(at: Site, x: Expr, pad: Sequence[int], value: Number = 0) -> Expr:
    """Pad with a constant; negative widths crop."""
    for axis, (before, after) in _borders(x, pad):
        x = _part(at, x, axis, max(0, -before), shape_of(x)[axis] - max(0, -after))
    widths = [0] * (2 * len(shape_of(x)))
    for axis, (before, after) in _borders(x, pad):
        widths[2 * axis : 2 * axis + 2] = [max(before, 0), max(after, 0)]
    return at.emit(R.nn.pad(x, widths, "constant", float(value))) if any(widths) else x


def _borders(x: Expr, pad: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    """List axes with their widths before and after; PyTorch counts from the last axis."""
    rank = len(shape_of(x))
    return [(rank - 1 - index, (pad[2 * index], pad[2 * index + 1])) for index in range(len(pad) // 2)]


@converter("reflection_pad1d.default", "reflection_pad2d.default", "reflection_pad3d.default")
def reflection_pad(at: Site, x: Expr, padding: Sequence[int]) -> Expr:
    """Pad by reflection, without repeating the edge."""
    return _padded_by(at, x, padding, lambda places, last: last - np.abs(last - np.abs(places)))


@converter("replication_pad1d.default", "replication_pad2d.default", "replication_pad3d.default")
def replication_pad(at: Site, x: Expr, padding: Sequence[int]) -> Expr:
    """Pad by repeating the edge."""
    return _padded_by(at, x, padding, lambda places, last: np.clip(places, 0, last))


def _padded_by(at: Site, x: Expr, padding: Sequence[int], inside: Callable[[np.ndarray, int], np.ndarray]) -> Expr:
    """Pad each axis by reading what lies ``inside`` for places before the first and behind the last; negative widths
    crop, and what is cropped on one side is still read on the other."""
    for axis, (before, after) in _borders(x, padding):
        extent = shape_of(x)[axis]
        places = inside(np.arange(-before, extent + after), extent - 1)
        x = at.emit(R.take(x, relax.const(places, "int64"), axis))
    return x


@converter("diagonal.default", "diagonal_copy.default")
def diagonal(at: Site, x: Expr, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Expr:
    """Read the diagonal of two axes as the last axis."""
    rank = len(shape_of(x))
    first, second = normalized(dim1, rank), normalized(dim2, rank)
    rest = [axis for axis in range(rank) if axis not in (first, second)]
    height, width = shape_of(x)[first], shape_of(x)[second]
    table = permute(at, x, [*rest, first, second])
    row = at.reshape(table, (*(shape_of(x)[axis] for axis in rest), height * width))
    places = np.arange(at.shape[-1]) * (width + 1) + (offset if offset > 0 else -offset * width)
    return at.emit(R.take(row, relax.const(places, "int64"), len(rest)))


@converter("unfold.default", "unfold_copy.default")
def windows(at: Site, x: Expr, dimension: int, size: int, step: int) -> Expr:
    """Read sliding windows of an axis along a new last axis."""
    rank = len(shape_of(x))
    if not rank:
        return at.reshape(x, at.shape)
    axis = normalized(dimension, rank)
    places = np.arange(at.shape[axis])[:, None] * step + np.arange(size)
    read = at.emit(R.take(x, relax.const(places, "int64"), axis))
    return permute(at, read, [*range(axis + 1), *range(axis + 2, rank + 1), axis + 1])


@converter("tril.default")
def lower_triangle(at: Site, x: Expr, diagonal: int = 0) -> Expr:
    """Keep elements on and below a diagonal, zero above."""
    return at.emit(R.tril(x, diagonal))


@converter("triu.default")
def upper_triangle(at: Site, x: Expr, diagonal: int = 0) -> Expr:
    """Keep elements on and above a diagonal, zero below."""
    return at.emit(R.triu(x, diagonal))


@converter("slice_scatter.default")
def slice_scatter(
    at: Site, x: Expr, src: Expr, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Expr:
    """Replace a slice of an axis."""
    axis = normalized(dim, len(shape_of(x)))
    extent = shape_of(x)[axis]
    first, last, _ = slice(start, end).indices(extent)
    last = max(first, last)
    if first == last:
        return x
    if step != 1:
        places, inner = np.arange(extent) - first, (1,) * (len(shape_of(x)) - 1 - axis)
        is_written = (places >= 0) & (places % step == 0) & (places < last - first)
        spread = at.emit(R.take(at.cast(src), relax.const(np.where(is_written, places // step, 0), "int64"), axis))
        return at.emit(R.where(relax.const(is_written.reshape(-1, *inner), "bool"), spread, x))
    front = [_part(at, x, axis, 0, first)] if first else []
    back = [_part(at, x, axis, last, extent)] if last < extent else []
    parts = [*front, at.cast(src), *back]
    return parts[0] if len(parts) == 1 else at.emit(R.concat(parts, axis=axis))


@converter("select_scatter.default")
def select_scatter(at: Site, x: Expr, src: Expr, dim: int, index: int) -> Expr:
    """Replace one position of an axis."""
    axis = normalized(dim, len(shape_of(x)))
    first = normalized(index, shape_of(x)[axis])
    return slice_scatter(at, x, at.emit(R.expand_dims(src, axis)), axis, first, first + 1)


# ---- of a shape alone ------------------------------------------------------------------------------------------------


@converter("full_like.default", "full.default", "new_full.default", "fill.Scalar")
def full(at: Site, fill_value: Number = 0, value: Number | None = None, dtype: Any = None, **_: Any) -> Expr:
    """Fill the result's shape with a number."""
    return at.full(fill_value if value is None else value)


@converter("fill.Tensor")
def fill_tensor(at: Site, x: Expr, value: Expr) -> Expr:
    """Fill the shape of x with the value of a tensor."""
    return at.broadcast(at.cast(value))


@converter(
    *("zeros_like.default", "new_zeros.default", "zeros.default", "empty_like.default", "new_empty.default"),
    *("empty.memory_format", "empty_strided.default", "new_empty_strided.default", "empty_permuted.default"),
)
def zeros(at: Site, dtype: Any = None, **_: Any) -> Expr:
    """Create zeros, for uninitialised tensors (``empty``) too."""
    return at.full(0)


@converter("ones_like.default", "new_ones.default", "ones.default")
def ones(at: Site, dtype: Any = None, **_: Any) -> Expr:
    """Create ones."""
    return at.full(1)
