"""Gathers, slices, padding and concatenation, and the gradient of an embedding."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from tvm import te, tirx, topi
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from .functions import isnan

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


EMBEDDING_GRADIENT = "embedding_gradient"
"""Name of the block of an embedding's gradient."""


def embedding_gradient(indices: te.Tensor, grad: te.Tensor, *, rows: int) -> te.Tensor:
    """Compute ``dTable[r, c] = sum over the positions p with indices[p] == r of grad[p, c]``.

    ``indices``: integers [positions]; negative ones count from the end, those out of range are skipped. ``grad``: float
    [positions, columns].
    """

    def body(ins: list[tirx.Buffer], outs: list[tirx.Buffer]) -> tirx.Stmt:
        return _added_rows(ins[0], ins[1], outs[0], rows, lambda row: row)

    return written(EMBEDDING_GRADIENT, [indices, grad], (rows, int(grad.shape[1])), grad.dtype, body)


COMBINES: dict[str, Callable[[tirx.Expr, tirx.Expr], tirx.Expr]] = {
    "write": lambda _old, new: new,
    "add": lambda old, new: old + new,
    "multiply": lambda old, new: old * new,
    "max": lambda old, new: tirx.Select(tirx.any(old >= new, isnan(old)), old, new),
    "min": lambda old, new: tirx.Select(tirx.any(old <= new, isnan(old)), old, new),
}
"""How an element is combined with what is written to it. NaN stays NaN."""


def scatter_rows(x: te.Tensor, indices: te.Tensor, values: te.Tensor, *, combine: str) -> te.Tensor:
    """Compute ``Y = X``, then for each position p in order ``Y[r, c] = combine(Y[r, c], values[p, c])`` with
    ``r = indices[p]``.

    ``x``: [rows, columns]; ``indices``: see :func:`embedding_gradient`; ``values``: [positions, columns].
    """
    rows, columns = (int(extent) for extent in x.shape)
    positions, stripe = int(indices.shape[0]), min(STRIPE, columns)

    def body(ins: list[tirx.Buffer], outs: list[tirx.Buffer]) -> tirx.Stmt:
        old, index, new, table = *ins, outs[0]
        with IRBuilder() as copied, T.parallel(rows) as row, T.serial(columns) as column:
            T.buffer_store(table, old[row, column], [row, column])
        with IRBuilder() as combined, T.parallel(-(-columns // stripe)) as outer, T.serial(positions) as p:
            with _inside(index[p], rows) as row, _columns(outer, stripe, columns) as c:
                T.buffer_store(table, COMBINES[combine](table[row, c], new[p, c]), [row, c])
        return tirx.SeqStmt([copied.get(), combined.get()])

    return written("scatter_rows", [x, indices, values], (rows, columns), x.dtype, body)


def first_positions(indices: te.Tensor, *, rows: int) -> te.Tensor:
    """Compute ``P[r] = min over the positions p with indices[p] == r of p``, int32 [rows]; the number of positions
    where there is none. ``indices``: see :func:`embedding_gradient`."""
    (positions,) = (int(extent) for extent in indices.shape)

    def body(ins: list[tirx.Buffer], outs: list[tirx.Buffer]) -> tirx.Stmt:
        index, first = ins[0], outs[0]
        with IRBuilder() as nowhere, T.serial(rows) as row:
            T.buffer_store(first, tirx.const(positions, "int32"), [row])
        with IRBuilder() as found, T.serial(positions) as at, _inside(index[positions - 1 - at], rows) as row:
            T.buffer_store(first, tirx.Cast("int32", positions - 1 - at), [row])
        return tirx.SeqStmt([nowhere.get(), found.get()])

    return written("first_positions", [indices], (rows,), "int32", body)


def gathered_gradient(indices: te.Tensor, grad: te.Tensor, first: te.Tensor) -> te.Tensor:
    """Compute the rows of :func:`embedding_gradient` that are not zero: ``G[first[r], c] = dTable[r, c]``.

    ``first``: from :func:`first_positions`. Returns float [positions + 1, columns]; the last row is zero.
    """
    positions, columns = (int(extent) for extent in grad.shape)

    def body(ins: list[tirx.Buffer], outs: list[tirx.Buffer]) -> tirx.Stmt:
        return _added_rows(ins[0], ins[1], outs[0], int(first.shape[0]), lambda row: ins[2][row])

    return written("gathered_gradient", [indices, grad, first], (positions + 1, columns), grad.dtype, body)


def _added_rows(
    index: tirx.Buffer,
    gradient: tirx.Buffer,
    table: tirx.Buffer,
    rows: int,
    place: Callable[[tirx.Expr], tirx.Expr],
) -> tirx.Stmt:
    """Clear a table, and add each row of ``gradient`` to the one at ``place`` of its index, which is below ``rows``."""
    positions, columns = (int(extent) for extent in gradient.shape)
    stripe = min(STRIPE, columns)
    with IRBuilder() as zeros, T.parallel(table.shape[0]) as row, T.serial(columns) as column:
        T.buffer_store(table, tirx.const(0, str(table.dtype)), [row, column])
    with IRBuilder() as sums, T.parallel(-(-columns // stripe)) as outer, T.serial(positions) as p:
        with _inside(index[p], rows) as row, _columns(outer, stripe, columns) as c:
            T.buffer_store(table, table[place(row), c] + gradient[p, c], [place(row), c])
    return tirx.SeqStmt([zeros.get(), sums.get()])


@contextlib.contextmanager
def _columns(outer: tirx.Expr, stripe: int, columns: int) -> Iterator[tirx.Expr]:
    """Loop over the columns of a stripe."""
    with T.serial(stripe) as inner, contextlib.ExitStack() as inside:
        column = outer * stripe + inner
        if columns % stripe:
            inside.enter_context(T.If(column < columns))
            inside.enter_context(T.Then())
        yield column


@contextlib.contextmanager
def _inside(index: tirx.Expr, rows: int) -> Iterator[tirx.Expr]:
    """Branch for an index in range, counted from the start."""
    with T.If(tirx.all(index >= -rows, index < rows)), T.Then():
        yield tirx.Select(index < 0, index + rows, index)


def written(
    name: str,
    operands: Sequence[te.Tensor],
    shape: Sequence[int],
    dtype: str,
    body: Callable[[list[tirx.Buffer], list[tirx.Buffer]], tirx.Stmt],
) -> te.Tensor:
    """Define a kernel that is written as loops. Its buffers are declared: te.extern would give them symbolic
    offsets."""
    read = [tirx.decl_buffer(each.shape, str(each.dtype), each.op.name, layout=None) for each in operands]
    extents = [tirx.IntImm("int64", extent) for extent in shape]
    result = tirx.decl_buffer(extents, str(dtype), "table", layout=None)
    return te.extern([extents], operands, body, dtype=str(dtype), in_buffers=read, out_buffers=[result], name=name)


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
