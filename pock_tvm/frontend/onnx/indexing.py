"""Operators that read and write by index, and resizing, which reads by computed position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, constant_value, dtype_of, is_float, scalar, shape_of

from ..indices import coordinate, counted_from_front
from .evaluation import evaluate_node
from .registry import Known, Node, converter, refuse


def _from_front(node: Node, indices: Expr, extent: int) -> Expr:
    """Convert negative indices to positions from the front."""
    known = constant_value(indices)
    if known is not None:
        refuse((known < -extent).any() or (known >= extent).any(), f"an index lies outside of {extent} positions")
        return relax.const(np.where(known < 0, known + extent, known), dtype_of(indices))
    return counted_from_front(node.emit, indices, extent)


@converter("Gather")
def gather(node: Node, x: Expr, indices: Expr, *, axis: int) -> Expr:
    """``x[…, indices, …]``: an embedding's look-up. Negative indices count from the end, except in an input of the
    model that indexes a parameter: it is checked before each step."""
    axis %= len(shape_of(x))
    if not (node.is_input(indices) and isinstance(x, relax.Var) and not node.is_input(x)):
        indices = _from_front(node, indices, shape_of(x)[axis])
    known = constant_value(indices)
    if known is not None and known.size == 1:
        place = int(known.reshape(()))
        part = node.emit(R.strided_slice(x, [axis], [place], [place + 1]))
        shape = [*shape_of(x)[:axis], *known.shape, *shape_of(x)[axis + 1 :]]
        return R.reshape(part, shape)
    return R.take(x, indices, axis=axis)


@converter("GatherElements")
def gather_elements(node: Node, x: Expr, indices: Expr, *, axis: int) -> Expr:
    """``x[i][indices[i][j]]``, for any axis."""
    axis %= len(shape_of(x))
    return R.gather_elements(x, _from_front(node, indices, shape_of(x)[axis]), axis)


@converter("GatherND")
def gather_nd(node: Node, x: Expr, indices: Expr, *, batch_dims: int = 0) -> Expr:
    """``x[indices[0], indices[1], …]`` with the coordinates along the last axis of ``indices``; the first
    ``batch_dims`` axes belong together."""
    shape, places = shape_of(x), shape_of(indices)
    reach = batch_dims + places[-1]
    place = _flat_places(node, indices, shape[batch_dims:reach])
    if batch_dims:
        size = int(np.prod(shape[batch_dims:reach]))
        batch = np.arange(int(np.prod(shape[:batch_dims]))) * size
        batch = batch.reshape(*shape[:batch_dims], *[1] * (len(places) - 1 - batch_dims))
        place = node.emit(R.add(place, relax.const(batch.astype(dtype_of(place)), dtype_of(place))))
    return R.take(node.emit(R.reshape(x, (int(np.prod(shape[:reach])), *shape[reach:]))), place, axis=0)


def _flat_places(node: Node, indices: Expr, extents: Sequence[int]) -> Expr:
    """Convert coordinates along the last axis of ``indices`` to positions in row-major order."""
    refuse(not extents, "it has no coordinates")
    last = len(shape_of(indices)) - 1
    flat: Expr | None = None
    for axis, extent in enumerate(extents):
        column = node.emit(R.squeeze(R.strided_slice(indices, [last], [axis], [axis + 1]), [-1]))
        column = _from_front(node, column, extent)
        if len(extents) > 1 and constant_value(column) is None:
            column = coordinate(node.emit, column, extent, int(np.prod(extents)))
        flat = column if flat is None else node.emit(R.add(R.multiply(flat, scalar(extent, flat)), column))
    assert flat is not None
    return flat


@converter("ScatterND")
def scatter_nd(node: Node, x: Expr, indices: Expr, updates: Expr, *, reduction: str = "none") -> Expr:
    """Write or add rows at coordinates along the last axis of ``indices``."""
    shape, count = shape_of(x), shape_of(indices)[-1]
    rows, columns = int(np.prod(shape[:count])), int(np.prod(shape[count:]))
    place = _flat_places(node, indices, shape[:count])
    written = int(np.prod(shape_of(place)))
    spread = node.emit(R.broadcast_to(R.reshape(place, (written, 1)), (written, columns)))
    table = node.emit(R.reshape(x, (rows, columns)))
    pieces = node.emit(R.reshape(updates, (written, columns)))
    return R.reshape(node.emit(R.scatter_elements(table, spread, pieces, 0, _REDUCTIONS[reduction])), shape)


_REDUCTIONS = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}
"""TVM's names of what a scatter does with the values that are there."""


@converter("ScatterElements", "Scatter")
def scatter_elements(node: Node, x: Expr, indices: Expr, updates: Expr, *, axis: int, reduction: str = "none") -> Expr:
    """Write or add updates at indices along an axis."""
    axis %= len(shape_of(x))
    return R.scatter_elements(x, _from_front(node, indices, shape_of(x)[axis]), updates, axis, _REDUCTIONS[reduction])


@converter("OneHot")
def one_hot(node: Node, indices: Expr, depth: Known, values: Expr, *, axis: int) -> Expr:
    """Write the second of two values at each index, the first elsewhere; negative indices count from the end."""
    extent = int(depth.reshape(-1)[0])
    rank = len(shape_of(indices)) + 1
    at = axis % rank
    along = [1] * rank
    along[at] = extent
    refuse(is_float(indices), "its indices are floating-point numbers")
    places = node.emit(R.astype(indices, "int64"))
    places = node.emit(R.where(R.less(places, scalar(0, places)), R.add(places, scalar(extent, places)), places))
    places = node.emit(R.expand_dims(places, at))
    hit = node.emit(R.equal(places, relax.const(np.arange(extent).reshape(along), "int64")))
    off, on = (node.emit(R.strided_slice(values, [0], [place], [place + 1])) for place in (0, 1))
    return R.where(hit, on, off)


@converter("ReverseSequence")
def reverse_sequence(node: Node, x: Expr, lengths: Known, *, batch_axis: int, time_axis: int) -> Expr:
    """Reverse the first ``lengths`` elements of each sequence."""
    shape = shape_of(x)
    places = np.zeros((shape[0], shape[1]), "int64")
    for position in range(shape[batch_axis]):
        count = int(lengths[position])
        order = [*range(count)[::-1], *range(count, shape[time_axis])]
        if time_axis == 0:
            places[:, position] = order
        else:
            places[position] = order
    spread = np.broadcast_to(places.reshape(*places.shape, *[1] * (len(shape) - 2)), shape)
    return R.gather_elements(x, relax.const(np.ascontiguousarray(spread), "int64"), time_axis)


@converter("Resize", "Upsample")
def resize(
    node: Node,
    x: Expr,
    roi: Known | None = None,
    scales: Known | None = None,
    sizes: Known | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "asymmetric",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str,
    nearest_mode: str = "floor",
) -> Expr:
    """Resize axis by axis, as ONNX interpolates, by the interpolation matrix of ONNX's own evaluator. A matrix that
    only repeats or selects elements becomes a read by index."""
    if node.version < 11:  # X, scales
        refuse(node.schema.name == "Upsample" and node.version < 9, "it is older than operator set 9")
        scales, roi = roi, None
    refuse(coordinate_transformation_mode == "tf_crop_and_resize", "it crops (tf_crop_and_resize)")
    refuse(
        keep_aspect_ratio_policy != "stretch",
        f"its attribute 'keep_aspect_ratio_policy' is '{keep_aspect_ratio_policy}'",
    )
    refuse(not is_float(x), f"it resizes {dtype_of(x)}")
    rank = len(shape_of(x))
    along = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    by_size = sizes is not None and sizes.size > 0
    targets = sizes if by_size else scales
    refuse(targets is None or len(targets) != len(along), "it has neither sizes nor scales for its axes")
    assert targets is not None
    for axis, target in zip(along, targets, strict=True):
        matrix = _interpolation(node, shape_of(x)[axis], target, by_size=by_size)
        x = _along(node, x, axis, matrix)
    return x


def _interpolation(node: Node, extent: int, target: float, *, by_size: bool) -> np.ndarray:
    """Build the interpolation matrix [outputs, inputs] of an axis."""
    kept = [a for a in node.proto.attribute if a.name not in ("axes",)]
    legacy = node.version < 11
    names = ["x", "scales"] if legacy else ["x", "", "", "sizes"] if by_size else ["x", "", "scales"]
    proto = onnx.helper.make_node("Resize" if not legacy else node.schema.name, names, ["y"])
    proto.attribute.extend(kept)
    plan = np.array([extent, target], "int64") if by_size else np.array([1, target], "float32")
    values = [np.eye(extent, dtype="float32"), *(None if not name else plan for name in names[1:])]
    return np.asarray(evaluate_node(proto, {"": node.version}, values)[0]).T


def _along(node: Node, x: Expr, axis: int, matrix: np.ndarray) -> Expr:
    """Multiply by a matrix along an axis."""
    outputs, extent = matrix.shape
    picked = matrix.argmax(1)
    if np.array_equal(matrix, np.eye(extent)[picked]):
        if outputs == extent and (picked == np.arange(extent)).all():
            return x
        if outputs % extent == 0 and np.array_equal(picked, np.arange(extent).repeat(outputs // extent)):
            return node.emit(R.repeat(x, outputs // extent, axis))
        return node.emit(R.take(x, relax.const(picked.astype("int64"), "int64"), axis=axis))
    weights = relax.const(np.ascontiguousarray(matrix.T).astype(dtype_of(x)), dtype_of(x))
    rank = len(shape_of(x))
    order = [*range(axis), *range(axis + 1, rank), axis]
    moved = x if axis == rank - 1 else node.emit(R.permute_dims(x, order))
    y = node.emit(R.matmul(moved, weights))
    back = [*range(axis), rank - 1, *range(axis, rank - 1)]
    return y if axis == rank - 1 else node.emit(R.permute_dims(y, back))
