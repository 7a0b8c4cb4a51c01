"""Pieces of the kernels that are written as loops: threads, unrolled loops, vectors, conditions, sums in parts.

All are context managers of TVM's IR builder, or write statements to it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.sym import Analyzer

from ..emit import substituted, where
from ..loops import loads_of
from .products.contraction import INDEX, Axis, Contraction, Env, extents_of, places, uses, with_sum

VECTOR_BYTES = 16
"""Bytes of the widest load or store."""
THREADS = 128
"""Threads of a block that add the parts of sums, one each."""


@contextlib.contextmanager
def bound(extent: int, thread: str) -> Iterator[tirx.Expr]:
    """Loop over blocks or threads."""
    with T.thread_binding(tirx.const(extent, INDEX), thread=thread) as var:
        yield _named(thread.removesuffix("Idx.x"), var).astype(INDEX)


def local(name: str, extent: int, dtype: str) -> tirx.Buffer:
    """Registers of a thread."""
    return _named(name, T.alloc_buffer((extent,), dtype, scope="local", layout=None))


def shared(name: str, extent: int, dtype: str) -> tirx.Buffer:
    """Memory that the threads of a block share."""
    return _named(name, T.alloc_buffer((extent,), dtype, scope="shared", layout=None))


def scratch(name: str, shape: Sequence[int], dtype: str) -> tirx.Buffer:
    """Memory for what a launch hands on to the next."""
    return _named(name, T.alloc_buffer(shape, dtype, layout=None))


def _named(name: str, value: tirx.Var) -> tirx.Var:
    IRBuilder.name(name, value)
    return value


def synchronise() -> None:
    """Write a barrier for the threads of a block."""
    T.evaluate(T.tvm_storage_sync("shared"))


def lanes_of(dtype: str) -> int:
    """Return the elements of the widest load or store."""
    return max(1, VECTOR_BYTES // tvm.DataType(dtype).itemsize)


def lanes_of_value(value: tirx.Expr) -> int:
    """Return the elements of the widest vector in which an expression may be computed, of all its types."""
    types = {str(value.ty.dtype)}
    tvm_ffi.structural_walk(value, ((TensorLoad, tirx.Cast), lambda node: types.add(str(node.ty.dtype))))
    return min(lanes_of(dtype) for dtype in types)


def is_contiguous(indices: Sequence[tirx.Expr], axes: Sequence[Axis]) -> bool:
    """Return whether indices of a buffer step by one element along the last axis."""
    if not (axes and isinstance(axes[-1].extent, int)):
        return False
    var = axes[-1].var
    *outer, last = indices
    step = Analyzer().simplify(substituted(last, {var: var + 1}) - last)
    return not any(uses(each, var) for each in outer) and isinstance(step, tirx.IntImm) and int(step) == 1


def reads_along(value: tirx.Expr, axes: Sequence[Axis]) -> bool:
    """Return whether what a factor reads first is adjacent in memory for adjacent elements of the last axis."""
    loads = loads_of(value)
    return bool(loads) and is_contiguous(loads[0].indices, axes)


def lanes_of_load(value: tirx.Expr, axes: Sequence[Axis], most: int) -> int:
    """Return the elements of a load along the last axis, up to ``most``: adjacent in what a factor reads first, and at
    multiples of their number there."""
    if not reads_along(value, axes):
        return 1
    load, axis = loads_of(value)[0], axes[-1]
    lanes = math.gcd(most, int(axis.extent))
    while lanes > 1 and not _is_multiple(load, axis.var, lanes):
        lanes //= 2
    return lanes


def _is_multiple(load: TensorLoad, var: tirx.Var, lanes: int) -> bool:
    """Return whether a load is at a multiple of ``lanes`` elements where a variable is a multiple of it."""
    flat: tirx.Expr = tirx.const(0, INDEX)
    for index, extent in zip(load.indices, load.source.shape, strict=True):
        flat = flat * extent + index
    found = Analyzer().modular_set(substituted(flat, {var: var * lanes}))
    return found.coeff % lanes == 0 and found.base % lanes == 0


def lanes_along(contraction: Contraction, axes: Sequence[Axis]) -> int:
    """Return the elements of a store of sums along the last axis: 1 if they are not adjacent."""
    lanes = lanes_of(contraction.dtype)
    return math.gcd(lanes, int(axes[-1].extent)) if is_contiguous(contraction.store.indices, axes) else 1


def store_sum(contraction: Contraction, total: tirx.Expr, at: Env) -> None:
    """Write the epilogue of one sum, at a place along the axes of the result."""
    store = substituted(contraction.store, at)
    value = with_sum(store.value, contraction.sums, total)
    with where(None if contraction.kept is None else substituted(contraction.kept, at)):
        T.buffer_store(store.buffer, value, list(store.indices))


def written(contraction: Contraction, splits: int, launch: Callable[[tirx.Buffer | None], None]) -> tirx.Stmt:
    """Return the loops of a product: those that ``launch`` writes. If blocks share sums, it gets scratch for their
    parts ([splits, results]), and another launch adds these."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        if splits == 1:
            launch(None)
        else:
            parts = scratch("parts", (splits, math.prod(extents_of(contraction))), contraction.dtype)
            launch(parts)
            _add_parts(contraction, parts, splits)
    return builder.get().body


def _add_parts(contraction: Contraction, parts: tirx.Buffer, splits: int) -> None:
    """Write the launch that adds the parts of each sum, in order."""
    count, dtype = math.prod(extents_of(contraction)), contraction.dtype
    with bound(math.ceil(count / THREADS), "blockIdx.x") as block, bound(THREADS, "threadIdx.x") as thread:
        number = block * THREADS + thread
        total = local("total", 1, dtype)
        with where(number < count):
            T.buffer_store(total, tirx.const(0, dtype), [0])
            with T.serial(tirx.const(splits, INDEX)) as split:
                T.buffer_store(total, total[0] + parts[split, number], [0])
            store_sum(
                contraction, total[0], places(number, (*contraction.batch, *contraction.rows, *contraction.columns))
            )
