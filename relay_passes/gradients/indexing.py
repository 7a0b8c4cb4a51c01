"""Gathers and scatters. The gradient of a gather is a scatter-add, or sums of known terms if the indices are known."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax
from tvm.relax import op as R

from ..errors import MissingGradient, PassError
from ..ir import Expr, constant_value, dtype_of, scalar, shape_of
from ..operators.registry import plain
from ..operators.resampling import summed
from ..operators.training import embedding_gradient, scatter_rows
from .registry import Use, gradient


@gradient("relax.take", pieces=True)
def take(use: Use) -> Expr:
    """y = x[…, indices, …] along an axis, as in an embedding: dx[…, i, …] = sum of dy where the index is i.

    A trained part of x along that axis is a set of an embedding's rows. Each index is mapped to its position in the
    part, and to one out of bounds for other rows, whose gradient is not added.
    """
    x, indices = use.args[:2]
    shape, axis, result = shape_of(x), plain(use.call.attrs.axis), shape_of(use.result)
    known = constant_value(indices)
    if axis is not None and use.piece is None and known is not None and _is_even(known, shape[axis]):
        return _from_known(known, use.grad, axis % len(shape), shape, dtype_of(x))
    rows_read = R.reshape(indices, (math.prod(shape_of(indices)),))
    if use.piece is not None:
        if axis is None or use.piece.axis != axis % len(shape):
            raise PassError(
                f"what 'relax.take' reads along axis {axis} is trained in part along that axis, not {use.piece.axis}"
            )
        count = len(use.piece.indices)
        position = np.full(shape[use.piece.axis], count, "int32")
        position[list(use.piece.indices)] = np.arange(count)
        rows_read = R.take(relax.const(position), rows_read, axis=0)
        shape = (*shape[: use.piece.axis], count, *shape[use.piece.axis + 1 :])
    if axis is None:
        return R.reshape(_along_axis(rows_read, use.grad, result, 0, (math.prod(shape),)), shape)
    return _along_axis(rows_read, use.grad, result, axis % len(shape), shape)


MOST_EMPTY = 4
"""Largest number of places for terms of a sum, relative to the number of terms and sums, where many are empty."""


def _is_even(indices: np.ndarray, extent: int) -> bool:
    """Return whether positions are read by some indices each, about equally often, and none is out of range."""
    if indices.ndim == 0 or indices.min() < 0 or indices.max() >= extent:
        return False
    most = int(np.bincount(indices.reshape(-1)).max())
    return most * extent <= MOST_EMPTY * (indices.size + extent)


def _from_known(indices: np.ndarray, grad: Expr, axis: int, shape: tuple[int, ...], dtype: str) -> Expr:
    """Add up, for each position along an axis, the gradients of what known indices read there."""
    grad = R.reshape(grad, (*shape[:axis], indices.size, *shape[axis + 1 :]))
    ones = np.ones(indices.size, dtype)
    return summed(grad, indices.reshape(-1), np.arange(indices.size), ones, shape[axis], axis)


def _along_axis(rows_read: Expr, grad: Expr, result: tuple[int, ...], axis: int, shape: tuple[int, ...]) -> Expr:
    """Scatter-add ``grad``, of shape ``result``, along an axis of zeros of ``shape``, by way of a matrix whose rows are
    the positions along that axis."""
    end = len(result) - len(shape) + axis + 1
    others = [*range(axis), *range(end, len(result))]
    front = R.permute_dims(grad, [*range(axis, end), *others]) if axis else grad
    positions, columns = math.prod(result[axis:end]), math.prod(result[a] for a in others)
    table = embedding_gradient(rows_read, R.reshape(front, (positions, columns)), rows=shape[axis])
    table = R.reshape(table, [shape[axis], *(result[a] for a in others)])
    return R.permute_dims(table, [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]) if axis else table


@gradient("relax.gather_elements")
def gather_elements(use: Use) -> Expr:
    """y[i][j] = x[index[i][j]][j]: dx = dy added into the elements that were read."""
    x, indices = use.args
    shape, axis = shape_of(x), int(use.call.attrs.axis) % len(shape_of(x))
    strides = [math.prod(shape[other + 1 :]) for other in range(len(shape))]
    others = [np.arange(extent) * strides[other] for other, extent in enumerate(shape_of(indices))]
    others[axis] *= 0
    offset = sum(np.ix_(*others), np.zeros((), "int64"))
    flat_index = R.add(
        R.multiply(R.astype(indices, "int64"), relax.const(strides[axis], "int64")), relax.const(offset, "int64")
    )
    count = math.prod(shape_of(indices))
    rows = embedding_gradient(R.reshape(flat_index, (count,)), R.reshape(use.grad, (count, 1)), rows=math.prod(shape))
    return R.reshape(rows, shape)


@gradient("pock.scatter_rows", 0)
def scatter_rows_table(use: Use) -> Expr:
    """y = x with v combined at the indices: dx = dy, but zero where v was written; of an extremum dx = dy / n where x
    is one of the n elements equal to it; of a product dx = dy times the other factors."""
    x, indices, values = use.args
    how = str(use.call.attrs["combine"])
    if how == "write":
        return scatter_rows(use.grad, indices, R.zeros(shape_of(values), dtype_of(values)), combine="write")
    if how == "add":
        return use.grad
    if how == "multiply":
        return use.grad * _product_of_others(x, *_product_of_rows(use))
    is_mine, _, share = _extremum_of_rows(use)
    return is_mine * share


@gradient("pock.scatter_rows", 2)
def scatter_rows_values(use: Use) -> Expr:
    """y = x with v combined at the indices: dv = dy at the indices; of an extremum dv = dy / n where v is one of the n
    elements equal to it; of a product dv = dy times the other factors."""
    _, indices, values = use.args
    how = str(use.call.attrs["combine"])
    if how in ("write", "add"):
        return R.take(use.grad, indices, axis=0)
    if how == "multiply":
        product, zeros = (R.take(each, indices, axis=0) for each in _product_of_rows(use))
        return R.take(use.grad, indices, axis=0) * _product_of_others(values, product, zeros)
    _, is_mine, share = _extremum_of_rows(use)
    return is_mine * R.take(share, indices, axis=0)


def _product_of_rows(use: Use) -> tuple[Expr, Expr]:
    """Return the product of the factors other than 0 of each element, and how many factors are 0."""
    x, indices, values = use.args
    product = scatter_rows(_without_zeros(x), indices, _without_zeros(values), combine="multiply")
    return product, scatter_rows(_is_zero(x), indices, _is_zero(values), combine="add")


def _product_of_others(factor: Expr, product: Expr, zeros: Expr) -> Expr:
    """Return the product of the other factors: 0 if one of them is 0."""
    zero = scalar(0, factor)
    return R.where(R.equal(zeros, _is_zero(factor)), product / _without_zeros(factor), zero)


def _is_zero(x: Expr) -> Expr:
    return R.astype(R.equal(x, scalar(0, x)), dtype_of(x))


def _without_zeros(x: Expr) -> Expr:
    return R.where(R.equal(x, scalar(0, x)), scalar(1, x), x)


def _extremum_of_rows(use: Use) -> tuple[Expr, Expr, Expr]:
    """Return which elements of x, and which values, equal the extremum, as numbers; and the share of each."""
    x, indices, values = use.args
    dtype = dtype_of(x)
    old = R.astype(R.equal(x, use.result), dtype)
    new = R.astype(R.equal(values, R.take(use.result, indices, axis=0)), dtype)
    return old, new, use.grad / scatter_rows(old, indices, new, combine="add")


def _scatters_by(use: Use) -> str:
    """The reduction of a ``relax.scatter_elements``: ``update`` or ``add``; others have no gradient rule."""
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

    Where several elements of u are written to one of y, each gets its whole gradient, as in PyTorch.
    """
    _scatters_by(use)
    return R.gather_elements(use.grad, use.args[1], axis=int(use.call.attrs.axis))


@gradient("relax.index_tensor")
def index_tensor(use: Use) -> Expr:
    """y = x[i, j, …, :], i and j index tensors along the first axes: dx = dy added into the elements that were read."""
    x, indices = use.args
    shape, count = shape_of(x), len(indices.fields)
    flat_index: Expr = relax.const(0, "int64")
    for index, extent in zip(indices.fields, shape, strict=False):
        index = R.astype(index, "int64")
        from_front = R.where(R.less(index, relax.const(0, "int64")), R.add(index, relax.const(extent, "int64")), index)
        flat_index = R.add(R.multiply(flat_index, relax.const(extent, "int64")), from_front)
    rows, columns = math.prod(shape[:count]), math.prod(shape[count:])
    positions = math.prod(shape_of(use.result)) // columns
    grad = R.reshape(use.grad, (positions, columns))
    return R.reshape(embedding_gradient(R.reshape(flat_index, (positions,)), grad, rows=rows), shape)
