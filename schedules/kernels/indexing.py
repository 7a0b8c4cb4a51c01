"""Gathers, slices, padding and concatenation, and the gradient of an embedding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from tvm import te, tirx, topi
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

STRIPE = 64  # columns per thread: threads share no column, so the summation order is fixed


def gather_channels(x: te.Tensor, channels: te.Tensor, *, axis: int) -> te.Tensor:
    """Compute ``Y[…, k, …] = X[…, channels[k], …]``: the activation that a channel-sparse weight gradient needs.

    ``channels``: int32 [count], all within the extent of ``axis``.
    """
    shape = [channels.shape[0] if at == axis else extent for at, extent in enumerate(x.shape)]
    return te.compute(shape, lambda *i: x(*i[:axis], channels(i[axis]), *i[axis + 1 :]), name="gather_channels")


def take(x: te.Tensor, indices: te.Tensor, *, axis: int) -> te.Tensor:
    """Compute ``Y[…, i, …] = X[…, indices[i], …]``.

    Here and below, an index out of range gives NaN, or the smallest integer. PyTorch raises an IndexError.
    """
    rank = len(indices.shape)
    shape = [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]

    def read(*at: tirx.Expr) -> tirx.Expr:
        index = indices(*at[axis : axis + rank])
        return _checked(x, {axis: index}, [*at[:axis], index, *at[axis + rank :]])

    return te.compute(shape, read, name="take")


def take_along(x: te.Tensor, indices: te.Tensor, *, axis: int) -> te.Tensor:
    """Compute ``Y[i, j] = X[indices[i, j], j]`` for axis 0 of two, and so on. Other axes of X may be longer."""
    return te.compute(indices.shape, lambda *at: _checked(x, {axis: indices(*at)}, at), name="take_along")


def index_tensor(x: te.Tensor, indices: Sequence[te.Tensor]) -> te.Tensor:
    """Compute ``Y[…, :] = X[i[…], j[…], …, :]``. Indices broadcast; negative ones count from the end."""
    shape = list(np.broadcast_shapes(*(tuple(map(int, index.shape)) for index in indices)))

    def read(*at: tirx.Expr) -> tirx.Expr:
        here = at[: len(shape)]
        places = {a: _from_front(_broadcast(index, here), x.shape[a]) for a, index in enumerate(indices)}
        return _checked(x, places, [*[tirx.const(0, "int64")] * len(indices), *at[len(shape) :]])

    return te.compute([*shape, *x.shape[len(indices) :]], read, name="index_tensor")


def _broadcast(x: te.Tensor, at: Sequence[tirx.Expr]) -> tirx.Expr:
    last = at[len(at) - len(x.shape) :]
    return x(*(tirx.const(0, "int64") if int(extent) == 1 else i for i, extent in zip(last, x.shape, strict=True)))


def _from_front(index: tirx.Expr, extent: tirx.Expr) -> tirx.Expr:
    return tirx.Select(index < 0, index + tirx.const(int(extent), str(index.ty.dtype)), index)


def _checked(x: te.Tensor, indices: Mapping[int, tirx.Expr], at: Sequence[tirx.Expr]) -> tirx.Expr:
    """Read X at a position, bounds-checked along the axes of ``indices``, which come from tensors."""
    places = [indices.get(axis, place) for axis, place in enumerate(at)]
    inside: list[tirx.Expr] = []
    for axis, index in indices.items():
        zero, end = (tirx.const(int(bound), str(index.ty.dtype)) for bound in (0, x.shape[axis]))
        inside += [index >= zero, index < end]
    dtype = str(x.dtype)
    nothing = tirx.const(math.nan, dtype) if "float" in dtype else _lowest(dtype)
    return tirx.if_then_else(tirx.all(*inside), x(*places), nothing)


def _lowest(dtype: str) -> tirx.Expr:
    return tirx.const(False, dtype) if dtype == "bool" else tirx.min_value(dtype)


def embedding_gradient(indices: te.Tensor, grad: te.Tensor, *, rows: int) -> te.Tensor:
    """Compute ``dTable[r, c] = sum over the positions p with indices[p] == r of grad[p, c]``.

    ``indices``: integers [positions]; negative ones count from the end, those out of range are skipped. ``grad``: float
    [positions, columns].
    """
    positions, columns = (int(extent) for extent in grad.shape)
    stripe = min(STRIPE, columns)

    def body(ins: list[tirx.Buffer], outs: list[tirx.Buffer]) -> tirx.Stmt:
        index, gradient, table = ins[0], ins[1], outs[0]
        with IRBuilder() as builder:
            with T.parallel(-(-columns // stripe)) as outer:
                with T.serial(rows) as row:
                    with T.serial(stripe) as inner:
                        with T.If(outer * stripe + inner < columns):
                            with T.Then():
                                T.buffer_store(table, tirx.const(0, grad.dtype), [row, outer * stripe + inner])
                with T.serial(positions) as p:
                    with T.serial(stripe) as inner:
                        with T.If(tirx.all(index[p] >= -rows, index[p] < rows, outer * stripe + inner < columns)):
                            with T.Then():
                                at = tirx.Select(index[p] < 0, index[p] + rows, index[p])
                                c = outer * stripe + inner
                                T.buffer_store(table, table[at, c] + gradient[p, c], [at, c])
            return builder.get()

    # Buffers are declared here: te.extern would give them symbolic offsets.
    read = [
        tirx.decl_buffer(tensor.shape, str(tensor.dtype), tensor.op.name, layout=None) for tensor in (indices, grad)
    ]
    table = tirx.decl_buffer([tirx.IntImm("int64", rows), grad.shape[1]], str(grad.dtype), "table", layout=None)
    return te.extern(
        [table.shape],
        [indices, grad],
        body,
        dtype=str(grad.dtype),
        in_buffers=read,
        out_buffers=[table],
        name="embedding_gradient",
    )


def pad_columns(x: te.Tensor, *, columns: int) -> te.Tensor:
    """Zero-pad the end of the last axis to ``columns``."""
    extent = int(x.shape[-1])
    zero = tirx.const(0, x.dtype)
    return te.compute(
        (*x.shape[:-1], columns), lambda *at: tirx.if_then_else(at[-1] < extent, x(*at), zero), name="pad_columns"
    )


def crop(x: te.Tensor, *, shape: Sequence[int]) -> te.Tensor:
    """Slice X to ``shape``, from the start of each axis."""
    return te.compute(tuple(shape), lambda *at: x(*at), name="crop")


def part(x: te.Tensor, *, index: int, count: int) -> te.Tensor:
    """Return part ``index`` of ``count`` equal parts of X along its first axis."""
    rows = int(x.shape[0]) // count
    return te.compute((rows, *x.shape[1:]), lambda row, *rest: x(row + index * rows, *rest), name="part")


def join(parts: Sequence[te.Tensor]) -> te.Tensor:
    """Concatenate tensors along the first axis."""
    return topi.concatenate(tuple(parts), axis=0)
