"""Products on CUDA's matrix units, of factors in 16 bits, or in tf32, with sums in float32.

A warp computes a tile of sums, 16 x 8 of them with an instruction. Steps lie in a ring of stages in shared memory.
Factors in 16 bits lie there in the order of global memory: rows are results if terms are adjacent there, else terms.
In tf32, rows are results: only elements of 16 bits are transposed as they are loaded. What is read as it lies in global
memory, 16 bytes at a time, is copied beside the threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.ir import Call, TensorLoad
from tvm.script.ir_builder import tirx as T

from ...emit import substituted, unrolled, vector, where
from ..emit import VECTOR_BYTES, lanes_of_value, local, shared, synchronise
from ..text.ptx import close_copies, copy_vector, load_matrices, multiply_matrices, round_word, wait_for_copies
from .contraction import INDEX, Env, uses
from .factor import Factor
from .matrix_tiles import MATRIX, MATRIX_BYTES, WARP, WarpTile
from .tiled import Tiled
from .tiles import PAD_BYTES


@dataclass(frozen=True)
class MatrixFactor(Factor):
    """A factor as warps read it."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(tvm.DataType(self.dtype).itemsize)

    @property
    def rows_are_results(self) -> bool:
        """Whether terms are adjacent in shared memory."""
        return self.along_terms or self.itemsize > 2

    @property
    def together(self) -> int:
        """Terms that an instruction multiplies."""
        return 2 * MATRIX_BYTES // self.itemsize

    @property
    def widest(self) -> int:
        """Most elements of a load."""
        return lanes_of_value(self.value)

    @property
    def pitch(self) -> int:
        """Elements of shared memory from a row to the next. The padding lets eight rows fall in all banks."""
        return (self.depth if self.rows_are_results else self.size) + PAD_BYTES // self.itemsize

    @property
    def elements(self) -> int:
        """Elements of shared memory for a step."""
        return (self.size if self.rows_are_results else self.depth) * self.pitch

    def cell(self, result: tirx.Expr, term: tirx.Expr) -> tirx.Expr:
        """Return the place of an element in shared memory."""
        return result * self.pitch + term if self.rows_are_results else term * self.pitch + result

    def across(self, lanes: int) -> AbstractContextManager[tirx.Expr]:
        """Loop over the elements of a load, which are apart in shared memory if its rows cross them."""
        return vector(lanes) if self.along_terms == self.rows_are_results else unrolled(lanes)

    @property
    def source(self) -> tuple[TensorLoad, tirx.Expr] | None:
        """First element of a copy of 16 bytes, and whether it exists. None if the factor is computed, is not
        aligned, is turned, or a part of it may not exist."""
        if self.lanes * self.itemsize != VECTOR_BYTES or self.along_terms != self.rows_are_results:
            return None
        value, conditions = self.value, []
        while isinstance(value, Call) and value.op.name == "prim.if_then_else":
            condition, value, otherwise = value.args
            conditions.append(condition)
            if not (isinstance(otherwise, tirx.FloatImm) and otherwise.value == 0):
                return None
        fastest = (self.reduced if self.along_terms else self.axes)[-1:]
        if not isinstance(value, TensorLoad) or any(uses(condition, fastest[0].var) for condition in conditions):
            return None
        return value, tirx.all(*conditions) if conditions else tirx.const(True, "bool")

    def copy(
        self,
        memory: tirx.Buffer,
        start: tirx.Expr,
        thread: tirx.Expr,
        first: Sequence[tirx.Expr],
        terms: tirx.Expr,
        env: Env,
    ) -> None:
        """Write the copies of a thread to shared memory, from element ``start`` on. ``first``: as in :meth:`fetch`."""
        assert self.source is not None
        load, exists = self.source
        with unrolled(self.rounds) as number:
            index = number * self.threads + thread
            result, term = self.place(index)
            at = self.at(first[0] + result, first[1] + term, env)
            source = substituted(load, at)
            inside = tirx.all(self.inside(first[0] + result, first[1] + term, terms), substituted(exists, at))
            with where(index < self.loads if self.loads % self.threads else None):
                copy_vector((memory, start + self.cell(result, term)), tirx.address_of(source), inside)

    def hold_matrices(
        self,
        memory: tirx.Buffer,
        registers: tirx.Buffer,
        lane: tirx.Expr,
        first: tirx.Expr,
        start: tirx.Expr,
        count: int,
    ) -> None:
        """Write a warp's loads of ``count`` times 16 results by the terms of an instruction: from result ``first`` on,
        and from element ``start`` of shared memory.

        The registers of each are results 0 to 7, then 8 to 15, of the first half of the terms, then of the second.
        """
        matrix, row = tirx.floordiv(lane, MATRIX), tirx.floormod(lane, MATRIX)
        result, term = tirx.floormod(matrix, 2) * MATRIX, tirx.floordiv(matrix, 2) * (self.together // 2)
        place = self.cell(result + row, term) if self.rows_are_results else self.cell(result, term + row)
        with unrolled(count) as number:
            at = start + self.cell(first + number * 2 * MATRIX, tirx.const(0, INDEX)) + place
            load_matrices((registers, number * 4), (memory, at), transposed=not self.rows_are_results)
            if self.itemsize > 2:
                with unrolled(4) as word:
                    round_word((registers, number * 4 + word))


@dataclass(frozen=True)
class WarpTiled(Tiled):
    """A product of which each warp multiplies its own rows and columns, a few terms at a time."""

    tile: WarpTile

    @property
    def adjacent(self) -> int:
        """Columns of a thread that are beside each other, in registers too."""
        return 2

    def place(self, i: tirx.Expr, j: tirx.Expr, thread: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Return row and column, in the tile, of a thread's row ``i`` and column ``j``: PTX's layout of C."""
        lane = tirx.floormod(thread, WARP)
        row, column = self._warp(thread)
        down, across = tirx.floordiv(lane, 4), tirx.floormod(lane, 4) * 2
        return row + i * 8 + down, column + tirx.floordiv(j, 2) * 8 + across + tirx.floormod(j, 2)

    def number(self, i: tirx.Expr, j: tirx.Expr) -> tirx.Expr:
        """Return the place in registers of the sum of a thread's row ``i`` and column ``j``."""
        matrix = tirx.floordiv(i, 2) * (self.tile.warp_columns // 8) + tirx.floordiv(j, 2)
        return matrix * 4 + tirx.floormod(i, 2) * 2 + tirx.floormod(j, 2)

    def sum(
        self, sums: tirx.Buffer, thread: tirx.Expr, starts: Sequence[tirx.Expr], split: tirx.Expr, env: Env
    ) -> None:
        """Write the steps of a tile, each of which overwrites the stage of the one before the last barrier."""
        tile, factors = self.tile, self.factors(MatrixFactor)
        terms, steps = self.steps(env)
        copied = [factor.source is not None for factor in factors]
        memory = [shared(f"{each.name}_tile", tile.stages * each.elements, each.dtype) for each in factors]
        coming = [
            None if is_copied else local(f"{each.name}_coming", each.rounds * each.lanes, each.dtype)
            for each, is_copied in zip(factors, copied, strict=True)
        ]

        def fetch(step: tirx.Expr, stage: tirx.Expr) -> None:
            for factor, start, at, registers in zip(factors, starts, memory, coming, strict=True):
                first = (start, (split * steps + step) * tile.depth)
                if registers is None:
                    factor.copy(at, stage * factor.elements, thread, first, terms, env)
                else:
                    factor.fetch(registers, thread, first, terms, env)

        def share(stage: tirx.Expr) -> None:
            for factor, at, registers in zip(factors, memory, coming, strict=True):
                if registers is not None:
                    factor.share(registers, at, thread, stage * factor.elements)

        for number in range(tile.stages - 1):
            step = tirx.const(number, INDEX)
            with where(step < steps):
                fetch(step, step)
                share(step)
            if any(copied):
                close_copies()
        with T.serial(steps, annotations={"disable_unroll": True}) as step:  # nvcc writes out 32 steps and more
            if any(copied):
                wait_for_copies(tile.stages - 2)
            synchronise()
            ahead = step + (tile.stages - 1)
            stage = tirx.floormod(ahead, tile.stages)
            with where(ahead < steps):
                fetch(ahead, stage)
            if any(copied):
                close_copies()
            self._multiply(sums, factors, memory, thread, tirx.floormod(step, tile.stages))
            with where(ahead < steps):
                share(stage)

    def _multiply(
        self,
        sums: tirx.Buffer,
        factors: Sequence[MatrixFactor],
        memory: Sequence[tirx.Buffer],
        thread: tirx.Expr,
        stage: tirx.Expr,
    ) -> None:
        """Write the multiply-adds of a step."""
        tile = self.tile
        counts = (tile.warp_rows // 16, tile.warp_columns // 16)
        held = [local(each.name, 4 * count, "uint32") for each, count in zip(factors, counts, strict=True)]
        together = factors[0].together
        with unrolled(tile.depth // together) as number:
            for factor, at, registers, first, count in zip(
                factors, memory, held, self._warp(thread), counts, strict=True
            ):
                start = stage * factor.elements + factor.cell(tirx.const(0, INDEX), number * together)
                factor.hold_matrices(at, registers, tirx.floormod(thread, WARP), first, start, count)
            with unrolled(counts[0]) as i, unrolled(2 * counts[1]) as j:
                right = tirx.floordiv(j, 2) * 4 + tirx.floormod(j, 2)
                multiply_matrices(
                    (sums, self.number(i * 2, j * 2)), (held[0], i * 4), (held[1], right), factors[0].dtype
                )

    def _warp(self, thread: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Return the first row and column of a thread's warp, in the tile."""
        warp, wide = tirx.floordiv(thread, WARP), self.tile.columns // self.tile.warp_columns
        return tirx.floordiv(warp, wide) * self.tile.warp_rows, tirx.floormod(warp, wide) * self.tile.warp_columns
