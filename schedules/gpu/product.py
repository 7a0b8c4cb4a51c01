"""Products in tiles: matrix products, convolutions (implicit GEMM) and their gradients.

A block of threads computes a tile of results. It brings the tile's factors into shared memory step by step, the next
step's being on their way in registers; each thread holds a small tile of sums in registers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.sym import Analyzer

from ..decisions import Choices
from .contraction import INDEX, Axis, Contraction, Env, contraction_of, flat, loads_of, places, substituted, uses, with_sum
from .tiles import PAD, VECTOR, Problem, Tile, choose_tile
from .traits import GpuTraits


def product(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> tirx.PrimFunc:
    """Write a product anew, in tiles.

    Decisions: ``tile``: rows, columns and terms of a block, rows and columns of a thread. ``splits``: blocks that share
    a sum. Each then leaves its part in scratch, and another launch adds them, in order.
    """
    func = sch.mod["main"]
    contraction = contraction_of(sch, block)
    terms = flat(contraction.reduced)
    is_constant = isinstance(terms, int)
    most = terms if isinstance(terms, int) else int(Analyzer().const_int_bound(terms).max_value)
    problem = Problem(*extents_of(contraction), most, is_constant)
    tile, splits = choose_tile(problem, traits, choices)
    return func.with_body(_Product(contraction, tile, splits).written())


def extents_of(contraction: Contraction) -> tuple[int, int, int]:
    """Return the extents of the batch, the rows and the columns of a product."""
    groups = (contraction.batch, contraction.rows, contraction.columns)
    batch, rows, columns = (math.prod(int(axis.extent) for axis in axes) for axes in groups)
    return batch, rows, columns


@dataclass(frozen=True)
class _Factor:
    """A factor of a product as a block reads it: in shared memory, its terms are rows."""

    value: tirx.Expr
    axes: tuple[Axis, ...]
    """Axes of the result."""
    reduced: tuple[Axis, ...]
    extent: int
    """Elements along ``axes``, of which a tile has ``size``."""
    size: int
    depth: int
    """Terms of a tile."""
    threads: int

    @property
    def along_terms(self) -> bool:
        """Whether adjacent terms are adjacent in memory, not adjacent results."""
        return not _is_contiguous(self.value, self.axes) and _is_contiguous(self.value, self.reduced)

    @property
    def lanes(self) -> int:
        """Elements of a load."""
        axes, size = (self.reduced, self.depth) if self.along_terms else (self.axes, self.size)
        return math.gcd(VECTOR, int(axes[-1].extent), size) if _is_contiguous(self.value, axes) else 1

    @property
    def pitch(self) -> int:
        """Elements of shared memory from a term to the next."""
        return self.size + PAD

    @property
    def loads(self) -> int:
        """Loads of all threads for a tile."""
        return self.size * self.depth // self.lanes

    @property
    def rounds(self) -> int:
        """Loads of a thread for a tile."""
        return math.ceil(self.loads / self.threads)

    def place(self, load: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Return result and term, in the tile, of the first element of a load."""
        if self.along_terms:
            wide = self.depth // self.lanes
            return tirx.floordiv(load, wide), tirx.floormod(load, wide) * self.lanes
        wide = self.size // self.lanes
        return tirx.floormod(load, wide) * self.lanes, tirx.floordiv(load, wide)

    def element(self, result: tirx.Expr, term: tirx.Expr, lane: tirx.Expr, terms: tirx.Expr | int, env: Env) -> tirx.Expr:
        """Return element ``lane`` of a load that begins at a result and a term; 0 beyond the last."""
        at = {**env, **places(result, self.axes), **places(term, self.reduced)}
        axes = self.reduced if self.along_terms else self.axes
        if self.lanes > 1:
            at[axes[-1].var] += lane
        inside = tirx.all(result < self.extent, term < terms)
        value = substituted(substituted(self.value, at), env)
        return tirx.if_then_else(inside, value, tirx.const(0, value.ty.dtype))


def _is_contiguous(value: tirx.Expr, axes: Sequence[Axis]) -> bool:
    """Return whether what a factor reads first is adjacent in memory for adjacent elements of the last axis."""
    loads = loads_of(value)
    if not (loads and axes and isinstance(axes[-1].extent, int)):
        return False
    var = axes[-1].var
    *outer, last = loads[0].indices
    step = Analyzer().simplify(substituted(last, {var: var + 1}) - last)
    return not any(uses(each, var) for each in outer) and isinstance(step, tirx.IntImm) and int(step) == 1


@dataclass(frozen=True)
class _Product:
    """A product with its tile and the number of blocks that share a sum."""

    contraction: Contraction
    tile: Tile
    splits: int

    @property
    def dtype(self) -> str:
        """Type of the sums."""
        return str(self.contraction.sums.dtype)

    def written(self) -> tirx.Stmt:
        """Return the loops: one launch, or two where blocks share sums."""
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            if self.splits == 1:
                self._blocks(None)
            else:
                parts = T.alloc_buffer((self.splits, math.prod(extents_of(self.contraction))), self.dtype, layout=None)
                self._blocks(parts)
                self._together(parts)
        return builder.get().body

    def _blocks(self, parts: tirx.Buffer | None) -> None:
        """Write the launch of the tiles. Sums go to the epilogue, or to ``parts``."""
        tile, contraction = self.tile, self.contraction
        batch, rows, columns = extents_of(contraction)
        down, across = math.ceil(rows / tile.rows), math.ceil(columns / tile.columns)
        factors = (
            _Factor(contraction.left, contraction.rows, contraction.reduced, rows, tile.rows, tile.depth, tile.threads),
            _Factor(
                contraction.right, contraction.columns, contraction.reduced, columns, tile.columns, tile.depth,
                tile.threads,
            ),
        )  # fmt: skip
        with (
            _bound(batch * self.splits * down * across, "blockIdx.x") as block,
            _bound(tile.threads, "threadIdx.x") as thread,
        ):
            starts = (
                tirx.floormod(tirx.floordiv(block, across), down) * tile.rows,
                tirx.floormod(block, across) * tile.columns,
            )
            group = tirx.floordiv(block, across * down)
            split, image = tirx.floormod(group, self.splits), tirx.floordiv(group, self.splits)
            env = places(image, contraction.batch)
            terms = substituted(flat(contraction.reduced), env)
            steps = -(-terms // tile.depth)
            steps = -(-steps // self.splits) if isinstance(steps, int) else steps
            begin = split * (steps * tile.depth)
            shared = [
                T.alloc_buffer((tile.depth * each.pitch,), str(each.value.ty.dtype), scope="shared", layout=None)
                for each in factors
            ]
            coming = [
                T.alloc_buffer((each.rounds * each.lanes,), str(each.value.ty.dtype), scope="local", layout=None)
                for each in factors
            ]
            held = [
                T.alloc_buffer((size,), str(each.value.ty.dtype), scope="local", layout=None)
                for each, size in zip(factors, (tile.thread_rows, tile.thread_columns), strict=True)
            ]
            sums = T.alloc_buffer((tile.thread_rows * tile.thread_columns,), self.dtype, scope="local", layout=None)
            wide = tile.columns // tile.thread_columns
            lanes = (tirx.floordiv(thread, wide), tirx.floormod(thread, wide))

            def fetch(term: tirx.Expr) -> None:
                for factor, start, registers in zip(factors, starts, coming, strict=True):
                    with _unrolled(factor.rounds) as number:
                        result, at = factor.place(number * tile.threads + thread)
                        with _vector(factor.lanes) as lane:
                            value = factor.element(start + result, term + at, lane, terms, env)
                            T.buffer_store(registers, value, [number * factor.lanes + lane])

            def share() -> None:
                for factor, registers, memory in zip(factors, coming, shared, strict=True):
                    with _unrolled(factor.rounds) as number:
                        result, at = factor.place(number * tile.threads + thread)
                        partial = factor.loads % tile.threads
                        with _where(number * tile.threads + thread < factor.loads if partial else None):
                            with _unrolled(factor.lanes) if factor.along_terms else _vector(factor.lanes) as lane:
                                to = at * factor.pitch + result + lane * (factor.pitch if factor.along_terms else 1)
                                T.buffer_store(memory, registers[number * factor.lanes + lane], [to])

            with _unrolled(tile.thread_rows * tile.thread_columns) as at:
                T.buffer_store(sums, tirx.const(0, self.dtype), [at])
            fetch(begin)
            share()
            T.evaluate(T.tvm_storage_sync("shared"))
            with T.serial(steps if not isinstance(steps, int) else tirx.const(steps, INDEX)) as step:
                with _where(step + 1 < steps):
                    fetch(begin + (step + 1) * tile.depth)
                with T.serial(tirx.const(tile.depth, INDEX)) as term:
                    sizes = (tile.thread_rows, tile.thread_columns)
                    counts = (tile.threads // wide, wide)
                    for factor, memory, registers, lane, size, count in zip(
                        factors, shared, held, lanes, sizes, counts, strict=True
                    ):
                        width = min(VECTOR, size)
                        with _unrolled(size // width) as number, _vector(width) as at:
                            place = (number * count + lane) * width + at
                            T.buffer_store(registers, memory[term * factor.pitch + place], [number * width + at])
                    with _unrolled(tile.thread_rows) as i, _unrolled(tile.thread_columns) as j:
                        at = i * tile.thread_columns + j
                        T.buffer_store(sums, sums[at] + held[0][i] * held[1][j], [at])
                T.evaluate(T.tvm_storage_sync("shared"))
                with _where(step + 1 < steps):
                    share()
                T.evaluate(T.tvm_storage_sync("shared"))
            width = math.gcd(self._lanes, min(VECTOR, tile.thread_columns))
            with _unrolled(tile.thread_rows) as i, _unrolled(tile.thread_columns // width) as j:
                row = starts[0] + _spread(i, lanes[0], tile.thread_rows, tile.threads // wide)
                column = starts[1] + _spread(j * width, lanes[1], tile.thread_columns, wide)
                inside = tirx.all(row < rows, column < columns)
                with _where(inside), _vector(width) as lane:
                    number = i * tile.thread_columns + j * width + lane
                    if parts is not None:
                        place = (image * rows + row) * columns + column + lane
                        T.buffer_store(parts, sums[number], [split, place])
                    else:
                        at = {**env, **places(row, contraction.rows), **places(column, contraction.columns)}
                        if width > 1:
                            at[contraction.columns[-1].var] += lane
                        self._store(sums[number], at)

    @property
    def _lanes(self) -> int:
        """Elements of a vector of adjacent results."""
        store, columns = self.contraction.store, self.contraction.columns
        if not columns:
            return 1
        var = columns[-1].var
        *outer, last = store.indices
        step = Analyzer().simplify(substituted(last, {var: var + 1}) - last)
        adjacent = isinstance(step, tirx.IntImm) and int(step) == 1 and not any(uses(each, var) for each in outer)
        return math.gcd(VECTOR, int(columns[-1].extent)) if adjacent else 1

    def _store(self, total: tirx.Expr, at: Env) -> None:
        """Write the epilogue of one sum."""
        store = substituted(self.contraction.store, at)
        value = with_sum(store.value, self.contraction.sums, total)
        kept = self.contraction.kept
        with _where(None if kept is None else substituted(kept, at)):
            T.buffer_store(store.buffer, value, list(store.indices))

    def _together(self, parts: tirx.Buffer) -> None:
        """Write the launch that adds the parts of each sum, in order."""
        contraction = self.contraction
        count = math.prod(extents_of(self.contraction))
        with _bound(math.ceil(count / THREADS), "blockIdx.x") as block, _bound(THREADS, "threadIdx.x") as thread:
            number = block * THREADS + thread
            total = T.alloc_buffer((1,), self.dtype, scope="local", layout=None)
            with _where(number < count):
                T.buffer_store(total, tirx.const(0, self.dtype), [0])
                with T.serial(tirx.const(self.splits, INDEX)) as split:
                    T.buffer_store(total, total[0] + parts[split, number], [0])
                at = places(number, (*contraction.batch, *contraction.rows, *contraction.columns))
                self._store(total[0], at)


THREADS = 128
"""Threads of a block that add the parts of sums, one each."""


def _spread(number: tirx.Expr, lane: tirx.Expr, size: int, threads: int) -> tirx.Expr:
    """Return the place in a block's tile of element ``number`` of a thread's ``size``: vectors of adjacent elements,
    those of the ``threads`` side by side."""
    width = min(VECTOR, size)
    return (tirx.floordiv(number, width) * threads + lane) * width + tirx.floormod(number, width)


@contextlib.contextmanager
def _bound(extent: int, thread: str) -> Iterator[tirx.Expr]:
    with T.thread_binding(tirx.const(extent, INDEX), thread=thread) as var:
        yield var.astype(INDEX)


def _unrolled(extent: int) -> AbstractContextManager[tirx.Var]:
    return T.unroll(tirx.const(extent, INDEX))


@contextlib.contextmanager
def _vector(lanes: int) -> Iterator[tirx.Expr]:
    """The lanes of a vector; the number 0 for one."""
    if lanes == 1:
        yield tirx.const(0, INDEX)
    else:
        with T.vectorized(tirx.const(lanes, INDEX)) as lane:
            yield lane


@contextlib.contextmanager
def _where(condition: tirx.Expr | bool | None) -> Iterator[None]:
    if condition is None:
        yield
    else:
        with T.If(condition), T.Then():
            yield
