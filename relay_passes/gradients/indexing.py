"""Reading by index: the gradient adds into the places that were read."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax
from tvm.relax import op as R

from ..errors import MissingGradient, PassError
from ..ir import Expr, dtype_of, shape_of
from ..operators.registry import plain
from ..operators.training import embedding_gradient
from .registry import Use, gradient


@gradient("relax.take", pieces=True)
def take(use: Use) -> Expr:
    """y = x[…, indices, …] along an axis: dx[…, i, …] = the sum of dy wherever i was read. The lookup of an embedding.

    A piece of x along that axis is some rows of an embedding: each index is looked up as its place in the piece, and
    what was read of other rows has none.
    """
    x, indices = use.args[:2]
    shape, axis, result = shape_of(x), plain(use.call.attrs.axis), shape_of(use.result)
    places = R.reshape(indices, (math.prod(shape_of(indices)),))
    if use.piece is not None:
        if axis is None or use.piece.axis != axis % len(shape):
            raise PassError(
                f"what 'relax.take' reads along axis {axis} is trained in part along that axis, not {use.piece.axis}"
            )
        count = len(use.piece.indices)
        place = np.full(shape[use.piece.axis], count, "int32")
        place[list(use.piece.indices)] = np.arange(count)
        places = R.take(relax.const(place), places, axis=0)
        shape = (*shape[: use.piece.axis], count, *shape[use.piece.axis + 1 :])
    if axis is None:
        return R.reshape(_along_axis(places, use.grad, result, 0, (math.prod(shape),)), shape)
    return _along_axis(places, use.grad, result, axis % len(shape), shape)


def _along_axis(places: Expr, grad: Expr, result: tuple[int, ...], axis: int, shape: tuple[int, ...]) -> Expr:
    """Bring the indexed axes of ``grad``, of shape ``result``, to the front, add up there, and bring one back that is
    as long as in ``shape``."""
    end = len(result) - len(shape) + axis + 1
    others = [*range(axis), *range(end, len(result))]
    front = R.permute_dims(grad, [*range(axis, end), *others]) if axis else grad
    positions, columns = math.prod(result[axis:end]), math.prod(result[a] for a in others)
    table = embedding_gradient(places, R.reshape(front, (positions, columns)), rows=shape[axis])
    table = R.reshape(table, [shape[axis], *(result[a] for a in others)])
    return R.permute_dims(table, [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]) if axis else table


@gradient("relax.gather_elements")
def gather_elements(use: Use) -> Expr:
    """y[i][j] = x[index[i][j]][j]: dx adds dy into the places that were read."""
    x, indices = use.args
    shape, axis = shape_of(x), int(use.call.attrs.axis) % len(shape_of(x))
    strides = [math.prod(shape[other + 1 :]) for other in range(len(shape))]
    others = [np.arange(extent) * strides[other] for other, extent in enumerate(shape_of(indices))]
    others[axis] *= 0
    place = sum(np.ix_(*others), np.zeros((), "int64"))
    read = R.add(
        R.multiply(R.astype(indices, "int64"), relax.const(strides[axis], "int64")), relax.const(place, "int64")
    )
    count = math.prod(shape_of(indices))
    rows = embedding_gradient(R.reshape(read, (count,)), R.reshape(use.grad, (count, 1)), rows=math.prod(shape))
    return R.reshape(rows, shape)


def _scatters_by(use: Use) -> str:
    """How ``relax.scatter_elements`` writes: ``update`` or ``add``; nothing else has a gradient rule."""
    reduction = str(use.call.attrs.reduction)
    if reduction not in ("update", "add"):
        raise MissingGradient(
            f"operator 'relax.scatter_elements' at '{use.result.name}' has no gradient rule with the reduction "
            f"'{reduction}', only with 'update' and 'add'"
        )
    return reduction


@gradient("relax.scatter_elements", 0)
def scatter_elements_data(use: Use) -> Expr:
    """y = x with u written or added at the indices: dx = dy, zero where u replaced what was there."""
    _, indices, updates = use.args
    if _scatters_by(use) == "add":
        return use.grad
    zeros = R.zeros(relax.ShapeExpr(shape_of(updates)), dtype_of(updates))
    return R.scatter_elements(use.grad, indices, zeros, axis=int(use.call.attrs.axis))


@gradient("relax.scatter_elements", 2)
def scatter_elements_updates(use: Use) -> Expr:
    """y = x with u written or added at the indices: du = dy at the indices.

    As in PyTorch, an element of y that several of u were written to counts for each of them.
    """
    _scatters_by(use)
    return R.gather_elements(use.grad, use.args[1], axis=int(use.call.attrs.axis))


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
