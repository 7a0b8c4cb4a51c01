"""Operators that move values: shapes, axes, slices, padding, repetition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, constant_value, dtype_of, scalar, shape_of

from .registry import Known, Node, converter, refuse


def integers(values: Known | Sequence[int] | None) -> list[int] | None:
    """Convert a constant to plain integers."""
    return None if values is None else [int(value) for value in np.asarray(values).reshape(-1)]


def _reshaped(x: Expr, shape: Sequence[int]) -> Expr:
    return x if tuple(shape) == shape_of(x) else R.reshape(x, tuple(shape))


@converter("Reshape")
def reshape(
    node: Node, x: Expr, target: Known | None = None, *, shape: Sequence[int] | None = None, allowzero: int = 0
) -> Expr:
    """Reshape: 0 copies an extent, -1 is inferred."""
    wanted = integers(target if target is not None else shape)
    refuse(wanted is None, "it has no shape")
    old = shape_of(x)
    refuse(allowzero and 0 in (wanted or []), "it makes an empty tensor")
    new = [old[axis] if extent == 0 else extent for axis, extent in enumerate(wanted or [])]
    if -1 in new:
        rest = int(np.prod([extent for extent in new if extent != -1]))
        new[new.index(-1)] = int(np.prod(old)) // rest
    refuse(int(np.prod(new)) != int(np.prod(old)), f"it makes {new} of {list(old)}")
    return _reshaped(x, new)


@converter("Flatten")
def flatten(node: Node, x: Expr, *, axis: int) -> Expr:
    """Flatten to a matrix: the axes before ``axis``, and the others."""
    shape = shape_of(x)
    at = axis + len(shape) if axis < 0 else axis
    return _reshaped(x, (int(np.prod(shape[:at])), int(np.prod(shape[at:]))))


@converter("Squeeze")
def squeeze(node: Node, x: Expr, removed: Known | None = None, *, axes: Sequence[int] | None = None) -> Expr:
    """Remove axes of extent 1: all, or the given ones."""
    shape = shape_of(x)
    named = integers(removed if removed is not None else axes)
    gone = {axis % len(shape) for axis in named} if named is not None else {i for i, n in enumerate(shape) if n == 1}
    refuse(any(shape[axis] != 1 for axis in gone), f"it removes an axis of {list(shape)} that is not of extent 1")
    return _reshaped(x, [extent for axis, extent in enumerate(shape) if axis not in gone])


@converter("Unsqueeze")
def unsqueeze(node: Node, x: Expr, added: Known | None = None, *, axes: Sequence[int] | None = None) -> Expr:
    """Add axes of extent 1, numbered as in the result."""
    named = integers(added if added is not None else axes)
    rank = len(shape_of(x)) + len(named or [])
    new = {axis % rank for axis in named or []}
    refuse(len(new) != len(named or []), "it adds an axis twice")
    old = iter(shape_of(x))
    return _reshaped(x, [1 if axis in new else next(old) for axis in range(rank)])


@converter("Transpose")
def transpose(node: Node, x: Expr, *, perm: Sequence[int] | None = None) -> Expr:
    """Permute axes; reverse them by default."""
    rank = len(shape_of(x))
    order = list(range(rank))[::-1] if perm is None else [axis % rank for axis in perm]
    return x if order == list(range(rank)) else R.permute_dims(x, order)


@converter("Concat")
def concat(node: Node, *inputs: Expr, axis: int) -> Expr:
    """Concatenate along an axis, skipping empty tensors."""
    parts = [part for part in inputs if 0 not in shape_of(part)]
    return parts[0] if len(parts) == 1 else R.concat(parts, axis % len(shape_of(parts[0])))


@converter("Split")
def split(
    node: Node,
    x: Expr,
    sizes: Known | None = None,
    *,
    axis: int,
    split: Sequence[int] | None = None,
    num_outputs: int | None = None,
) -> list[Expr | np.ndarray]:
    """Split an axis into parts of given or equal sizes; the last equal part may be smaller."""
    axis %= len(shape_of(x))
    extent, count = shape_of(x)[axis], num_outputs or len(node.proto.output)
    parts = integers(sizes if sizes is not None else split)
    if parts is None:
        share = -(-extent // count)
        parts = [min(share, extent - share * index) for index in range(count)]
    refuse(sum(parts) != extent or min(parts) < 0, f"it splits {extent} into {parts}")
    present = [part for part in parts if part]
    if len(present) == 1:
        results: list[Expr] = [x]
    else:
        ends = [int(end) for end in np.cumsum(present)[:-1]]
        whole = node.emit(R.split(x, len(present) if len(set(present)) == 1 else ends, axis))
        results = [relax.TupleGetItem(whole, index) for index in range(len(present))]
    empty = np.empty([0 if at == axis else n for at, n in enumerate(shape_of(x))], dtype_of(x))
    given = iter(results)
    return [next(given) if part else empty for part in parts]


@converter("Slice")
def slices(
    node: Node,
    x: Expr,
    begin: Known | None = None,
    end: Known | None = None,
    along: Known | None = None,
    steps: Known | None = None,
    *,
    starts: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
) -> Expr:
    """Slice axes as Python does; a negative step reads backwards."""
    firsts = integers(begin if begin is not None else starts) or []
    lasts = integers(end if end is not None else ends) or []
    named = integers(along if along is not None else axes)
    strides = integers(steps) or [1] * len(firsts)
    shape = shape_of(x)
    axes = [axis % len(shape) for axis in (named if named is not None else range(len(firsts)))]
    cuts: list[tuple[int, int, int, int]] = []
    for axis, first, last, stride in zip(axes, firsts, lasts, strides, strict=True):
        places = range(*slice(first, last, stride).indices(shape[axis]))
        refuse(not len(places), f"it reads nothing along axis {axis}; empty tensors are not supported")
        if stride < 0:  # read the same elements forwards, then reverse
            places = places[::-1]
        cuts.append((axis, places[0], places[-1] + 1, abs(stride)))
    cuts = [cut for cut in cuts if cut[1:] != (0, shape[cut[0]], 1)]
    if cuts:
        x = node.emit(R.strided_slice(x, *(list(field) for field in zip(*cuts, strict=True))))
    for axis, stride in zip(axes, strides, strict=True):
        if stride < 0:
            x = node.emit(R.flip(x, axis))
    return x


@converter("Expand")
def expand(node: Node, x: Expr, shape: Known) -> Expr:
    """Broadcast x and a shape against each other."""
    new = np.broadcast_shapes(shape_of(x), tuple(integers(shape) or []))
    if new == shape_of(x):
        return x
    if len(new) > len(shape_of(x)):
        x = node.emit(R.reshape(x, (*[1] * (len(new) - len(shape_of(x))), *shape_of(x))))
    return x if new == shape_of(x) else R.broadcast_to(x, new)


@converter("Tile")
def tile(node: Node, x: Expr, repeats: Known) -> Expr:
    """Tile along each axis."""
    times = integers(repeats) or []
    refuse(any(count < 1 for count in times), "it repeats an axis less than once; empty tensors are not supported")
    return x if all(count == 1 for count in times) else R.tile(x, times)


@converter("Pad")
def pad(
    node: Node,
    x: Expr,
    widths: Known | None = None,
    fill: Expr | None = None,
    along: Known | None = None,
    *,
    mode: str,
    pads: Sequence[int] | None = None,
    paddings: Sequence[int] | None = None,
    value: float = 0.0,
) -> Expr:
    """Pad by a constant, the edge, reflection, or wrapping; negative widths crop."""
    rank = len(shape_of(x))
    named = integers(along)
    axes = list(range(rank)) if named is None else [axis % rank for axis in named]
    given = integers(widths if widths is not None else pads if pads is not None else paddings) or []
    refuse(len(given) != 2 * len(axes), f"it has {len(given)} widths for {len(axes)} axes")
    border = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        border[axis] = (given[position], given[position + len(axes)])
    number = constant_value(fill) if fill is not None else np.asarray(value)
    refuse(number is None, "its input 'constant_value' is computed from the model's inputs; it has to be a constant")
    flat = [width for pair in border for width in pair]
    if mode == "constant" and all(width >= 0 for width in flat):
        return R.nn.pad(x, flat, "constant", float(np.asarray(number).reshape(()))) if any(flat) else x
    for axis, (before, after) in enumerate(border):
        x = _bordered(node, x, axis, before, after, mode, np.asarray(number))
    return x


def _bordered(node: Node, x: Expr, axis: int, before: int, after: int, mode: str, number: np.ndarray) -> Expr:
    """Pad or crop one axis: read by position, then add a constant border."""
    extent = shape_of(x)[axis]
    if mode == "constant":
        first, last = max(-before, 0), extent - max(-after, 0)
        refuse(first >= last, f"it cuts all off along axis {axis}; empty tensors are not supported")
        if (first, last) != (0, extent):
            x = node.emit(R.strided_slice(x, [axis], [first], [last]))
        around = [0] * (2 * len(shape_of(x)))
        around[2 * axis : 2 * axis + 2] = max(before, 0), max(after, 0)
        return node.emit(R.nn.pad(x, around, "constant", float(number.reshape(())))) if any(around) else x
    refuse(mode not in ("edge", "reflect", "wrap"), f"its attribute 'mode' is '{mode}'")
    refuse(before < 0 or after < 0, f"it cuts off in mode '{mode}'")
    if not before and not after:
        return x
    places = np.pad(np.arange(extent), (before, after), mode=mode)  # type: ignore[call-overload]
    return node.emit(R.take(x, relax.const(places.astype("int64"), "int64"), axis=axis))


@converter("DepthToSpace", "SpaceToDepth")
def depth_and_space(node: Node, x: Expr, *, blocksize: int, mode: str = "DCR") -> Expr:
    """Move blocks of channels to blocks of pixels, or back."""
    refuse(mode not in ("DCR", "CRD"), f"its attribute 'mode' is '{mode}'")
    batch, channels, height, width = shape_of(x)
    if node.schema.name == "DepthToSpace":
        count, split = channels // blocksize**2, (blocksize, blocksize)
        first = (*split, count) if mode == "DCR" else (count, *split)
        order = [0, 3, 4, 1, 5, 2] if mode == "DCR" else [0, 1, 4, 2, 5, 3]
        apart = node.emit(R.reshape(x, (batch, *first, height, width)))
        shape = (batch, count, height * blocksize, width * blocksize)
        return R.reshape(node.emit(R.permute_dims(apart, order)), shape)
    high, wide = height // blocksize, width // blocksize
    apart = node.emit(R.reshape(x, (batch, channels, high, blocksize, wide, blocksize)))
    order = [0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4]
    return R.reshape(node.emit(R.permute_dims(apart, order)), (batch, channels * blocksize**2, high, wide))


@converter("Trilu")
def triangle(node: Node, x: Expr, k: Expr | None = None, *, upper: int) -> Expr:
    """Keep the upper or lower triangle from diagonal ``k``, zero elsewhere."""
    rows, columns = shape_of(x)[-2:]
    ahead = np.arange(columns, dtype="int64") - np.arange(rows, dtype="int64")[:, None]
    diagonal = None if k is None else constant_value(k)
    kept: Expr
    if k is None or diagonal is not None:
        first = 0 if diagonal is None else int(diagonal.reshape(-1)[0])
        kept = relax.const(ahead >= first if upper else ahead <= first, "bool")
    else:
        first = node.emit(R.reshape(k, ()))
        kept = node.emit((R.greater_equal if upper else R.less_equal)(relax.const(ahead, "int64"), first))
    return R.logical_and(x, kept) if dtype_of(x) == "bool" else R.where(kept, x, scalar(0, x))


@converter("EyeLike")
def eye_like(node: Node, x: Expr, *, dtype: int | None = None, k: int) -> Expr:
    """Create ones on a diagonal, in the shape of a matrix."""
    refuse(dtype is None and dtype_of(x) == "bool", "it makes truth values")
    from onnx.helper import tensor_dtype_to_np_dtype

    element = dtype_of(x) if dtype is None else tensor_dtype_to_np_dtype(dtype).name
    rows, columns = shape_of(x)
    return relax.const(np.eye(rows, columns, k).astype(element), element)
