"""Loops of a product in tiles.

A block of threads computes a tile of results. It brings the tile's factors into shared memory step by step, those of
the next step being on their way in registers. Each thread holds a small tile of sums in registers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .contraction import INDEX, Axis, Contraction, Env, extents_of, flat, places, substituted
from .emit import (
    VECTOR,
    bound,
    lanes_along,
    local,
    reads_along,
    shared,
    store_sum,
    synchronise,
    unrolled,
    vector,
    where,
    written,
)
from .tiles import PAD, Tile


@dataclass(frozen=True)
class Factor:
    """A factor of a product as a block reads it: in shared memory, its terms are rows."""

    name: str
    value: tirx.Expr
    axes: tuple[Axis, ...]
    """Axes of the result."""
    reduced: tuple[Axis, ...]
    extent: int
    """Elements along ``axes``, of which a tile has ``size``, a thread ``own``."""
    size: int
    own: int
    depth: int
    """Terms of a tile."""
    threads: int
    """Threads of a block."""

    @property
    def dtype(self) -> str:
        """Type of an element."""
        return str(self.value.ty.dtype)

    @property
    def along_terms(self) -> bool:
        """Whether adjacent terms are adjacent in memory, not adjacent results."""
        return not reads_along(self.value, self.axes) and reads_along(self.value, self.reduced)

    @property
    def lanes(self) -> int:
        """Elements of a load from global memory."""
        axes, size = (self.reduced, self.depth) if self.along_terms else (self.axes, self.size)
        return math.gcd(VECTOR, int(axes[-1].extent), size) if reads_along(self.value, axes) else 1

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

    def element(self, result: tirx.Expr, term: tirx.Expr, lane: tirx.Expr, terms: tirx.Expr, env: Env) -> tirx.Expr:
        """Return element ``lane`` of a load that begins at a result and a term; 0 beyond the last."""
        reduced = [Axis(axis.var, substituted(axis.extent, env)) for axis in self.reduced]
        at = {**env, **places(result, self.axes), **places(term, reduced)}
        if self.lanes > 1:
            at[(self.reduced if self.along_terms else self.axes)[-1].var] += lane
        inside = tirx.all(result < self.extent, term < terms)
        return tirx.if_then_else(inside, substituted(self.value, at), tirx.const(0, self.dtype))

    def fetch(
        self, registers: tirx.Buffer, thread: tirx.Expr, first: Sequence[tirx.Expr], terms: tirx.Expr, env: Env
    ) -> None:
        """Write the loads of a thread into registers. ``first``: result and term that the tile begins at."""
        with unrolled(self.rounds) as number:
            result, term = self.place(number * self.threads + thread)
            with vector(self.lanes) as lane:
                value = self.element(first[0] + result, first[1] + term, lane, terms, env)
                T.buffer_store(registers, value, [number * self.lanes + lane])

    def share(self, registers: tirx.Buffer, memory: tirx.Buffer, thread: tirx.Expr) -> None:
        """Write the stores of what a thread has loaded to shared memory."""
        with unrolled(self.rounds) as number:
            load = number * self.threads + thread
            result, term = self.place(load)
            is_load = load < self.loads if self.loads % self.threads else None
            with where(is_load), unrolled(self.lanes) if self.along_terms else vector(self.lanes) as lane:
                place = term * self.pitch + result + lane * (self.pitch if self.along_terms else 1)
                T.buffer_store(memory, registers[number * self.lanes + lane], [place])

    def place_of(self, number: tirx.Expr, lane: tirx.Expr) -> tirx.Expr:
        """Return the place in the tile of a thread's element ``number``: vectors of adjacent elements, those of threads
        with adjacent ``lane`` side by side."""
        width = min(VECTOR, self.own)
        return (tirx.floordiv(number, width) * (self.size // self.own) + lane) * width + tirx.floormod(number, width)

    def hold(self, memory: tirx.Buffer, registers: tirx.Buffer, term: tirx.Expr, lane: tirx.Expr) -> None:
        """Write the loads of a thread's elements of one term from shared memory."""
        width = min(VECTOR, self.own)
        with unrolled(self.own // width) as number, vector(width) as at:
            place = self.place_of(number * width, lane) + at
            T.buffer_store(registers, memory[term * self.pitch + place], [number * width + at])


@dataclass(frozen=True)
class Tiled:
    """A product with its tile, and the number of blocks that share a sum."""

    contraction: Contraction
    tile: Tile
    splits: int

    @property
    def dtype(self) -> str:
        """Type of the sums."""
        return str(self.contraction.sums.dtype)

    @property
    def factors(self) -> tuple[Factor, Factor]:
        """The factors, left and right, as a block reads them."""
        tile, contraction = self.tile, self.contraction
        _, rows, columns = extents_of(contraction)

        def factor(name: str, value: tirx.Expr, axes: tuple[Axis, ...], extent: int, size: int, own: int) -> Factor:
            return Factor(name, value, axes, contraction.reduced, extent, size, own, tile.depth, tile.threads)

        return (
            factor("left", contraction.left, contraction.rows, rows, tile.rows, tile.thread_rows),
            factor("right", contraction.right, contraction.columns, columns, tile.columns, tile.thread_columns),
        )

    def written(self) -> tirx.Stmt:
        """Return the loops: one launch, or two where blocks share sums."""
        return written(self.contraction, self.splits, self._launch)

    def _launch(self, parts: tirx.Buffer | None) -> None:
        """Write the launch of the tiles. Sums go to the epilogue, or to ``parts``."""
        tile = self.tile
        batch, rows, columns = extents_of(self.contraction)
        down, across = math.ceil(rows / tile.rows), math.ceil(columns / tile.columns)
        blocks = batch * self.splits * down * across
        with bound(blocks, "blockIdx.x") as block, bound(tile.threads, "threadIdx.x") as thread:
            group = tirx.floordiv(block, across * down)
            split, image = tirx.floormod(group, self.splits), tirx.floordiv(group, self.splits)
            row = tirx.floormod(tirx.floordiv(block, across), down) * tile.rows
            column = tirx.floormod(block, across) * tile.columns
            env = places(image, self.contraction.batch)
            sums = local("sums", tile.thread_rows * tile.thread_columns, self.dtype)
            with unrolled(tile.thread_rows * tile.thread_columns) as at:
                T.buffer_store(sums, tirx.const(0, self.dtype), [at])
            self._sum(sums, thread, (row, column), split, env)
            self._store(sums, thread, (row, column), image, env, None if parts is None else (parts, split))

    def _lanes(self, thread: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Return the place of a thread among those of its block, along rows and columns."""
        wide = self.tile.columns // self.tile.thread_columns
        return tirx.floordiv(thread, wide), tirx.floormod(thread, wide)

    def _sum(
        self, sums: tirx.Buffer, thread: tirx.Expr, starts: Sequence[tirx.Expr], split: tirx.Expr, env: Env
    ) -> None:
        """Write the steps of a tile."""
        tile, factors = self.tile, self.factors
        terms = flat(self.contraction.reduced)
        terms = tirx.const(terms, INDEX) if isinstance(terms, int) else substituted(terms, env)
        steps = tirx.floordiv(terms + tile.depth * self.splits - 1, tile.depth * self.splits)
        memory = [shared(f"{each.name}_tile", each.depth * each.pitch, each.dtype) for each in factors]
        coming = [local(f"{each.name}_coming", each.rounds * each.lanes, each.dtype) for each in factors]
        held = [local(each.name, each.own, each.dtype) for each in factors]

        def fetch(step: tirx.Expr | int) -> None:
            for factor, start, registers in zip(factors, starts, coming, strict=True):
                factor.fetch(registers, thread, (start, (split * steps + step) * tile.depth), terms, env)

        def share() -> None:
            for factor, registers, at in zip(factors, coming, memory, strict=True):
                factor.share(registers, at, thread)

        fetch(0)
        share()
        synchronise()
        with T.serial(steps) as step:
            with where(step + 1 < steps):
                fetch(step + 1)
            with T.serial(tirx.const(tile.depth, INDEX), unroll=True) as term:
                for factor, at, registers, lane in zip(factors, memory, held, self._lanes(thread), strict=True):
                    factor.hold(at, registers, term, lane)
                self._multiply(sums, *held)
            synchronise()
            with where(step + 1 < steps):
                share()
            synchronise()

    def _multiply(self, sums: tirx.Buffer, left: tirx.Buffer, right: tirx.Buffer) -> None:
        """Write the multiply-adds of one term. Matrix units would take all terms of a step here, instead."""
        with unrolled(self.tile.thread_rows) as i, unrolled(self.tile.thread_columns) as j:
            at = i * self.tile.thread_columns + j
            T.buffer_store(sums, sums[at] + left[i] * right[j], [at])

    def _store(
        self,
        sums: tirx.Buffer,
        thread: tirx.Expr,
        starts: Sequence[tirx.Expr],
        image: tirx.Expr,
        env: Env,
        parts: tuple[tirx.Buffer, tirx.Expr] | None,
    ) -> None:
        """Write the stores of a thread's sums: to the epilogue, or to ``parts`` (with the split's number)."""
        tile, contraction, factors = self.tile, self.contraction, self.factors
        _, rows, columns = extents_of(contraction)
        vectors = contraction.columns and lanes_along(contraction.store.indices, contraction.columns)
        width = math.gcd(vectors or 1, tile.thread_columns)
        lanes = self._lanes(thread)
        with unrolled(tile.thread_rows) as i, unrolled(tile.thread_columns // width) as j:
            row = starts[0] + factors[0].place_of(i, lanes[0])
            column = starts[1] + factors[1].place_of(j * width, lanes[1])
            with where(tirx.all(row < rows, column < columns)), vector(width) as lane:
                total = sums[i * tile.thread_columns + j * width + lane]
                if parts is not None:
                    T.buffer_store(parts[0], total, [parts[1], (image * rows + row) * columns + column + lane])
                else:
                    at = {**env, **places(row, contraction.rows), **places(column, contraction.columns)}
                    if width > 1:
                        at[contraction.columns[-1].var] += lane
                    store_sum(contraction, total, at)
