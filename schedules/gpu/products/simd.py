"""Products on Metal's matrix units: each SIMD group multiplies matrices of 8 x 8, in float32.

Factors of 16 bits are widened on their way to shared memory. Which thread holds which sum of a matrix, Metal does not
tell: sums go through shared memory to the threads that store them. The text is checked on the host; no Mac has run it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...emit import unrolled
from ..emit import shared, synchronise
from ..traits import GpuTraits
from .contraction import Env
from .factor import Factor
from .tiled import ThreadTiled
from .tiles import LANES, NEAR, PAD_BYTES, WORD

GROUP = 32
"""Threads of a SIMD group."""
MATRIX = 8
"""Rows and columns of a matrix."""
SUMS = "float32"
SIZES = (16, 32, 64)
"""Rows and columns of a block's tile."""
SHAPES = ((16, 16), (16, 32), (32, 16), (32, 32))
"""Rows and columns of a SIMD group."""
DEPTH = 16
"""Terms of a step."""
MOST_GROUPS = 8
"""SIMD groups of a block."""
PAD = PAD_BYTES // WORD


@dataclass(frozen=True)
class SimdTile:
    """Results of a block and terms of a step, and results of a SIMD group."""

    rows: int
    columns: int
    depth: int
    group_rows: int
    group_columns: int

    stages = 2

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return GROUP * (self.rows // self.group_rows) * (self.columns // self.group_columns)

    @property
    def thread_rows(self) -> int:
        """Rows that a thread stores."""
        return self.group_rows // 8

    @property
    def thread_columns(self) -> int:
        """Columns that a thread stores."""
        return self.group_columns // 4

    @property
    def registers(self) -> int:
        """Registers of a thread, about: sums, factors and their places."""
        return 40 + (self.group_rows * self.group_columns + MATRIX * (self.group_rows + self.group_columns)) // GROUP

    @property
    def elements(self) -> int:
        """Elements of shared memory: of a step's factors, then of the results."""
        return max(self.depth * (self.rows + self.columns + 2 * PAD), self.rows * (self.columns + PAD))

    def shared_bytes(self, widths: tuple[int, int]) -> int:
        """Return the shared memory of a block, in bytes."""
        return WORD * self.elements

    def cycles(self, widths: tuple[int, int]) -> float:
        """Return the cycles of a core for a step's loads from shared memory, and its multiply-adds."""
        read = WORD * (self.group_rows + self.group_columns) * self.threads // GROUP
        return self.depth * (self.rows * self.columns / LANES + read / NEAR)


def simd_tiles(traits: GpuTraits) -> list[SimdTile]:
    """Return the tiles that a GPU can hold."""
    found = []
    for rows, columns, (high, wide) in itertools.product(SIZES, SIZES, SHAPES):
        tile = SimdTile(rows, columns, DEPTH, high, wide)
        fits = tile.shared_bytes((WORD, WORD)) <= traits.shared_bytes and tile.threads <= traits.threads
        if not (rows % high or columns % wide) and fits and 2 * GROUP <= tile.threads <= MOST_GROUPS * GROUP:
            found.append(tile)
    return found


@dataclass(frozen=True)
class SimdTiled(ThreadTiled):
    """A product of which each SIMD group multiplies its own rows and columns."""

    tile: SimdTile

    def sum(
        self, sums: tirx.Buffer, thread: tirx.Expr, starts: Sequence[tirx.Expr], split: tirx.Expr, env: Env
    ) -> None:
        """Write the steps of a tile, and bring its sums to the threads that store them."""
        tile = self.tile
        counts = (tile.group_rows // MATRIX, tile.group_columns // MATRIX)
        memory = shared("tile", tile.elements, SUMS)
        totals, *held = (
            T.alloc_buffer((count * MATRIX**2,), SUMS, scope="metal.simdgroup", layout=None)
            for count in (counts[0] * counts[1], *counts)
        )
        group, wide = tirx.floordiv(thread, GROUP), tile.columns // tile.group_columns
        first = tirx.floordiv(group, wide) * tile.group_rows, tirx.floormod(group, wide) * tile.group_columns
        factors = self.factors(Factor)
        offsets = (0, factors[0].elements)

        def multiply() -> None:
            with unrolled(tile.depth // MATRIX) as number:
                for factor, offset, matrices, at, count in zip(factors, offsets, held, first, counts, strict=True):
                    with unrolled(count) as matrix:
                        place = offset + factor.cell(at + matrix * MATRIX, number * MATRIX)
                        _load(matrices, matrix, memory, place, factor.pitch, transposed=factor is factors[0])
                with unrolled(counts[0]) as i, unrolled(counts[1]) as j:
                    _multiply(totals, i * counts[1] + j, held[0], i, held[1], j)

        with unrolled(counts[0] * counts[1]) as matrix:
            _clear(totals, matrix)
        self.bring([memory, memory], multiply, thread, starts, split, env, offsets)
        pitch = tile.columns + PAD
        with unrolled(counts[0]) as i, unrolled(counts[1]) as j:
            place = (first[0] + i * MATRIX) * pitch + first[1] + j * MATRIX
            _store(totals, i * counts[1] + j, memory, place, pitch)
        synchronise()
        with unrolled(tile.thread_rows) as i, unrolled(tile.thread_columns) as j:
            row, column = self.place(i, j, thread)
            T.buffer_store(sums, memory[row * pitch + column], [self.number(i, j)])


def _clear(matrices: tirx.Buffer, number: tirx.Expr) -> None:
    """Write a matrix of zeros."""
    T.evaluate(T.metal.make_filled_simdgroup_matrix(matrices.data, number, T.float32(0), MATRIX, MATRIX))


def _load(
    matrices: tirx.Buffer, number: tirx.Expr, memory: tirx.Buffer, place: tirx.Expr, pitch: int, *, transposed: bool
) -> None:
    """Write the load of a matrix, whose rows in memory are ``pitch`` elements apart."""
    source = memory.access_ptr("r", offset=place)
    T.evaluate(T.metal.simdgroup_load(matrices.data, number, source, pitch, MATRIX, MATRIX, transposed))


def _store(matrices: tirx.Buffer, number: tirx.Expr, memory: tirx.Buffer, place: tirx.Expr, pitch: int) -> None:
    """Write the store of a matrix."""
    to = memory.access_ptr("w", offset=place)
    T.evaluate(T.metal.simdgroup_store(matrices.data, number, to, pitch, MATRIX, MATRIX, False))


def _multiply(
    sums: tirx.Buffer, number: tirx.Expr, left: tirx.Buffer, i: tirx.Expr, right: tirx.Buffer, j: tirx.Expr
) -> None:
    """Write the addition of the product of two matrices to sums."""
    T.evaluate(T.metal.simdgroup_multiply_accumulate(sums.data, number, left.data, i, right.data, j, sums.data, number))
