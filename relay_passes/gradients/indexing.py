"""Reading by index: the gradient adds into the places that were read."""

from __future__ import annotations

import math

from tvm import relax
from tvm.relax import op as R

from ..ir import Expr, dtype_of, shape_of
from ..operators.registry import plain
from ..operators.training import embedding_gradient
from .registry import Use, gradient


@gradient("relax.take")
def take(use: Use) -> Expr:
    """y = x[…, indices, …] along an axis: dx[…, i, …] = the sum of dy wherever i was read. The lookup of an
    embedding."""
    x, indices = use.args[:2]
    shape, axis = shape_of(x), plain(use.call.attrs.axis)
    if axis is None:
        return R.reshape(_along_first_axis(indices, use.grad, shape_of(use.result), 0, (math.prod(shape),)), shape)
    return _along_first_axis(indices, use.grad, shape_of(use.result), axis % len(shape), shape)


def _along_first_axis(indices: Expr, grad: Expr, result: tuple[int, ...], axis: int, shape: tuple[int, ...]) -> Expr:
    """Bring the indexed axis to the front, add up there, and bring it back."""
    positions = math.prod(shape_of(indices))
    indexed = list(range(axis, axis + len(shape_of(indices))))
    others = [a for a in range(len(result)) if a not in indexed]
    front = R.permute_dims(grad, indexed + others) if axis else grad
    columns = math.prod(result[a] for a in others)
    table = embedding_gradient(
        R.reshape(indices, (positions,)), R.reshape(front, (positions, columns)), rows=shape[axis]
    )
    outer = [shape[axis], *(result[a] for a in others)]
    table = R.reshape(table, outer)
    return R.permute_dims(table, [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]) if axis else table


@gradient("relax.gather_elements")
def gather_elements(use: Use) -> Expr:
    """y[i][j] = x[index[i][j]][j]: dx adds dy into the places that were read."""
    x, indices = use.args
    zeros = R.zeros(relax.ShapeExpr(shape_of(x)), dtype_of(x))
    return R.scatter_elements(zeros, indices, use.grad, axis=int(use.call.attrs.axis), reduction="add")


@gradient("relax.index_tensor")
def index_tensor(use: Use) -> Expr:
    """y = x[i, j, …, :] for tensors i, j of indices along the first axes: dx adds dy into the places that were read."""
    x, indices = use.args
    shape, count = shape_of(x), len(indices.fields)
    place: Expr = relax.const(0, "int64")
    for index, extent in zip(indices.fields, shape, strict=False):
        index = R.astype(index, "int64")
        from_front = R.where(R.less(index, relax.const(0, "int64")), R.add(index, relax.const(extent, "int64")), index)
        place = R.add(R.multiply(place, relax.const(extent, "int64")), from_front)
    rows, columns = math.prod(shape[:count]), math.prod(shape[count:])
    positions = math.prod(shape_of(use.result)) // columns
    grad = R.reshape(use.grad, (positions, columns))
    return R.reshape(embedding_gradient(R.reshape(place, (positions,)), grad, rows=rows), shape)
