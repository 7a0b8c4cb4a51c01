"""Loops of a product in tiles.

A block of threads computes a tile of results. It brings the tile's factors into shared memory step by step, those of
the next step being on their way meanwhile. Each thread holds a small tile of sums in registers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...emit import substituted, unrolled, vector, where
from ..emit import bound, lanes_along, local, shared, store_sum, synchronise, written
from .contraction import INDEX, Contraction, Env, extents_of, flat, places
from .factor import Factor
from .tiles import Tile

AnyFactor = TypeVar("AnyFactor", bound=Factor)


@dataclass(frozen=True)
class Tiled(ABC):
    """A product with its tile, and the number of blocks that share a sum."""

    contraction: Contraction
    tile: Tile
    splits: int

    def written(self) -> tirx.Stmt:
        """Return the loops: one launch, or two where blocks share sums."""
        return written(self.contraction, self.splits, self._launch)

    @abstractmethod
    def sum(
        self, sums: tirx.Buffer, thread: tirx.Expr, starts: Sequence[tirx.Expr], split: tirx.Expr, env: Env
    ) -> None:
        """Write the steps of a tile that starts at a row and a column."""

    @abstractmethod
    def place(self, i: tirx.Expr, j: tirx.Expr, thread: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Return row and column, in the tile, of a thread's row ``i`` and column ``j``."""

    @abstractmethod
    def number(self, i: tirx.Expr, j: tirx.Expr) -> tirx.Expr:
        """Return the place in registers of the sum of a thread's row ``i`` and column ``j``."""

    @property
    @abstractmethod
    def adjacent(self) -> int:
        """Columns of a thread that are beside each other, in registers too."""

    def factors(self, kind: type[AnyFactor]) -> tuple[AnyFactor, AnyFactor]:
        """Return the factors, left and right, as a block reads them."""
        tile, contraction = self.tile, self.contraction
        _, rows, columns = extents_of(contraction)
        step = (tile.depth, tile.threads, self.contraction.dtype)
        return (
            kind(
                "left",
                contraction.left,
                contraction.rows,
                contraction.reduced,
                rows,
                tile.rows,
                tile.thread_rows,
                *step,
            ),
            kind(
                "right",
                contraction.right,
                contraction.columns,
                contraction.reduced,
                columns,
                tile.columns,
                tile.thread_columns,
                *step,
            ),
        )

    def steps(self, env: Env) -> tuple[tirx.Expr, tirx.Expr]:
        """Return the terms of a sum, and the steps of a block for its part of them."""
        terms = flat(self.contraction.reduced)
        terms = tirx.const(terms, INDEX) if isinstance(terms, int) else substituted(terms, env)
        together = self.tile.depth * self.splits
        return terms, tirx.floordiv(terms + together - 1, together)

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
            sums = local("sums", tile.thread_rows * tile.thread_columns, self.contraction.dtype)
            with unrolled(tile.thread_rows * tile.thread_columns) as at:
                T.buffer_store(sums, tirx.const(0, self.contraction.dtype), [at])
            self.sum(sums, thread, (row, column), split, env)
            self._store(sums, thread, (row, column), image, env, None if parts is None else (parts, split))

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
        tile, contraction = self.tile, self.contraction
        _, rows, columns = extents_of(contraction)
        width = math.gcd(lanes_along(contraction, contraction.columns), self.adjacent) if contraction.columns else 1
        with unrolled(tile.thread_rows) as i, unrolled(tile.thread_columns // width) as j:
            down, across = self.place(i, j * width, thread)
            row, column = starts[0] + down, starts[1] + across
            with where(tirx.all(row < rows, column < columns)), vector(width) as lane:
                total = sums[self.number(i, j * width) + lane]
                if parts is not None:
                    T.buffer_store(parts[0], total, [parts[1], (image * rows + row) * columns + column + lane])
                else:
                    at = {**env, **places(row, contraction.rows), **places(column, contraction.columns)}
                    if width > 1:
                        at[contraction.columns[-1].var] += lane
                    store_sum(contraction, total, at)


@dataclass(frozen=True)
class ThreadTiled(Tiled):
    """A product of which each thread multiplies its own rows and columns, term by term."""

    @property
    def adjacent(self) -> int:
        """Columns of a thread that are beside each other, in registers too."""
        return self.factors(Factor)[1].width

    def place(self, i: tirx.Expr, j: tirx.Expr, thread: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Return row and column, in the tile, of a thread's row ``i`` and column ``j``."""
        left, right = self.factors(Factor)
        down, across = self._lanes(thread)
        return left.place_of(i, down), right.place_of(j, across)

    def number(self, i: tirx.Expr, j: tirx.Expr) -> tirx.Expr:
        """Return the place in registers of the sum of a thread's row ``i`` and column ``j``."""
        return i * self.tile.thread_columns + j

    def sum(
        self, sums: tirx.Buffer, thread: tirx.Expr, starts: Sequence[tirx.Expr], split: tirx.Expr, env: Env
    ) -> None:
        """Write the steps of a tile."""
        factors = self.factors(Factor)
        memory = [shared(f"{each.name}_tile", each.elements, each.dtype) for each in factors]
        held = [local(each.name, each.own, self.contraction.dtype) for each in factors]

        def multiply() -> None:
            with T.serial(tirx.const(self.tile.depth, INDEX), unroll=True) as term:
                for factor, at, registers, lane in zip(factors, memory, held, self._lanes(thread), strict=True):
                    factor.hold(at, registers, term, lane)
                self._multiply(sums, *held)

        self.bring(memory, multiply, thread, starts, split, env)

    def bring(
        self,
        memory: Sequence[tirx.Buffer],
        multiply: Callable[[], None],
        thread: tirx.Expr,
        starts: Sequence[tirx.Expr],
        split: tirx.Expr,
        env: Env,
        offsets: Sequence[int] = (0, 0),
    ) -> None:
        """Write the steps that bring both factors into shared memory, and multiply them there. The next step's are on
        their way in registers. All threads have read the factors when the last step ends.

        ``offsets``: first element of each factor in its memory.
        """
        tile, factors = self.tile, self.factors(Factor)
        terms, steps = self.steps(env)
        coming = [local(f"{each.name}_coming", each.rounds * each.lanes, each.dtype) for each in factors]

        def fetch(step: tirx.Expr | int) -> None:
            for factor, start, registers in zip(factors, starts, coming, strict=True):
                factor.fetch(registers, thread, (start, (split * steps + step) * tile.depth), terms, env)

        def share() -> None:
            for factor, registers, at, offset in zip(factors, coming, memory, offsets, strict=True):
                factor.share(registers, at, thread, offset)

        fetch(0)
        share()
        synchronise()
        with T.serial(steps) as step:
            with where(step + 1 < steps):
                fetch(step + 1)
            multiply()
            synchronise()
            with where(step + 1 < steps):
                share()
            synchronise()

    def _multiply(self, sums: tirx.Buffer, left: tirx.Buffer, right: tirx.Buffer) -> None:
        """Write the multiply-adds of one term."""
        with unrolled(self.tile.thread_rows) as i, unrolled(self.tile.thread_columns) as j:
            at = self.number(i, j)
            T.buffer_store(sums, sums[at] + left[i] * right[j], [at])

    def _lanes(self, thread: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Return the place of a thread among those of its block, along rows and columns."""
        wide = self.tile.columns // self.tile.thread_columns
        return tirx.floordiv(thread, wide), tirx.floormod(thread, wide)
