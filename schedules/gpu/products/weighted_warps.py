"""Products ``W C`` on CUDA's matrix units, of factors in 16 bits, with W and sums in float32.

Each warp has 16 rows, and all columns. PTX's layout of the sums of a product is that of a left factor's registers, so
that a warp's tile of W, rounded to 16 bits, is multiplied from where it was computed. Factors of rows lie in shared
memory; those of the next tile of columns, and values, come there beside the threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...emit import unrolled, where
from ..emit import local, shared, synchronise
from ..text.ptx import close_copies, exchange, multiply_matrices, pack_pair, wait_for_copies
from .contraction import INDEX, Axis, Env, narrow
from .matrix import MatrixFactor
from .matrix_tiles import WARP
from .tiles import PAD_BYTES
from .weighted import SUMS, Weighted, WeightedBlock, filled

ROWS = 16
"""Rows of a warp, columns of 16 bits that a load has, and terms that an instruction multiplies."""
HELD = 4
"""Loads of ``ROWS`` columns that a thread holds at once."""


@dataclass(frozen=True)
class StripTile:
    """Rows and columns of W of a block: a warp for each 16 rows."""

    rows: int
    columns: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows // ROWS * WARP

    @property
    def own_rows(self) -> int:
        """Rows of a thread: one of every 8."""
        return ROWS // 8

    @property
    def own_columns(self) -> int:
        """Columns of W of a thread: two of every 8."""
        return self.columns // 4

    def own_width(self, width: int) -> int:
        """Return the columns of C of a thread: two of every 8."""
        return padded(width) // 4

    def shared_bytes(self, terms: Sequence[int], width: int) -> int:
        """Return the shared memory of a block, in bytes: of the layout of each factor that takes more. ``terms``: of
        each product."""
        tiles = [(size, padded(each)) for each in terms for size in (self.rows, self.columns)]
        tiles.append((padded(width), self.columns))
        return sum(2 * high * wide + PAD_BYTES * max(high, wide) for high, wide in tiles)


def padded(extent: int) -> int:
    """Return an extent in whole loads."""
    return math.ceil(extent / ROWS) * ROWS


class WarpBlock(WeightedBlock):
    """A block whose warps multiply."""

    tile: StripTile

    def __init__(self, weighted: Weighted, tile: StripTile, env: Env, first: tirx.Expr, thread: tirx.Expr) -> None:
        super().__init__(weighted, tile, env, first, thread)
        self.lane = tirx.floormod(thread, WARP)
        self.first_of_warp = tirx.floordiv(thread, WARP) * ROWS
        """First row of a warp, in the tile."""

        def factor(name: str, value: tirx.Expr, axis: Axis, terms: Axis, size: int, depth: int) -> MatrixFactor:
            extent = int(axis.extent)
            return MatrixFactor(name, narrow(value), (axis,), (terms,), extent, size, 0, depth, tile.threads, SUMS)

        depths = [padded(int(each.terms.extent)) for each in weighted.products]
        self.lefts = [
            factor("left", each.left, weighted.rows, each.terms, tile.rows, depth)
            for each, depth in zip(weighted.products, depths, strict=True)
        ]
        self.rights = [
            factor("right", each.right, weighted.columns, each.terms, tile.columns, depth)
            for each, depth in zip(weighted.products, depths, strict=True)
        ]
        width = padded(int(weighted.width.extent))
        self.values = factor("values", weighted.values, weighted.width, weighted.columns, width, tile.columns)

    @property
    def adjacent(self) -> int:
        """Columns of C of a thread that are beside each other, in registers too."""
        return 2

    @property
    def is_first_of_row(self) -> tirx.Expr:
        """Whether a thread is the first of the four that share its rows."""
        return tirx.floormod(self.lane, 4) == 0

    def row(self, i: tirx.Expr) -> tirx.Expr:
        """Return the row, in the tile, of a thread's row ``i``: PTX's layout of C."""
        return self.first_of_warp + i * 8 + tirx.floordiv(self.lane, 4)

    def column(self, j: tirx.Expr) -> tirx.Expr:
        """Return the column, in the tile, of a thread's column ``j`` of W: PTX's layout of C."""
        return tirx.floordiv(j, 2) * 8 + tirx.floormod(self.lane, 4) * 2 + tirx.floormod(j, 2)

    def column_of_values(self, j: tirx.Expr) -> tirx.Expr:
        """Return the column of C of a thread's column ``j`` of it."""
        return self.column(j)

    def number(self, i: tirx.Expr, j: tirx.Expr, wide: int) -> tirx.Expr:
        """Return the place in registers of a thread's row ``i`` and column ``j``: a matrix after the other."""
        return tirx.floordiv(j, 2) * 4 + i * 2 + tirx.floormod(j, 2)

    def start(self, begin: tirx.Expr, end: tirx.Expr) -> None:
        """Write the start of the copies of the rows' factors, and of the first columns'."""

        def memory(factor: MatrixFactor) -> tirx.Buffer:
            return shared(f"{factor.name}_tile", factor.elements, factor.dtype)

        self.of_rows, self.of_columns = [memory(each) for each in self.lefts], [memory(each) for each in self.rights]
        self.of_values = memory(self.values)
        with where(begin < end):
            for factor, at in zip(self.lefts, self.of_rows, strict=True):
                self._bring(factor, at, self.first, tirx.const(0, INDEX))
            self._bring_columns(begin)

    def products(self, step: tirx.Expr) -> list[tirx.Buffer]:
        """Write the products of a tile of columns, and return a thread's elements of each. Values come meanwhile."""
        wait_for_copies(0)
        synchronise()
        self._bring(self.values, self.of_values, tirx.const(0, INDEX), step * self.tile.columns)
        close_copies()
        return [
            self._product(*factors)
            for factors in zip(self.lefts, self.rights, self.of_rows, self.of_columns, strict=True)
        ]

    def _product(
        self, left: MatrixFactor, right: MatrixFactor, of_rows: tirx.Buffer, of_columns: tirx.Buffer
    ) -> tirx.Buffer:
        """Write a tile of a product, and return its elements of a thread."""
        sums = filled("products", self.tile.own_rows * self.tile.own_columns, 0)
        held = local("left", 4, "uint32")
        with unrolled(left.depth // ROWS) as number:
            term = number * ROWS
            start = left.cell(tirx.const(0, INDEX), term)
            left.hold_matrices(of_rows, held, self.lane, self.first_of_warp, start, 1)
            self._multiply(sums, (held, 0), right, of_columns, term)
        return sums

    def add(self, weights: tirx.Buffer, step: tirx.Expr, end: tirx.Expr) -> None:
        """Write the addition of what a tile of W adds to the sums. Factors of the next columns come meanwhile."""
        tile = self.tile
        packed = local("packed", tile.columns // ROWS * 4, "uint32")
        with unrolled(tile.columns // ROWS * 4) as pair:
            pack_pair((packed, pair), (weights, pair * 2), self.values.dtype)
        wait_for_copies(0)
        synchronise()
        with where(step + 1 < end):
            self._bring_columns(step + 1)
        with unrolled(tile.columns // ROWS) as number:
            self._multiply(self.sums, (packed, number * 4), self.values, self.of_values, number * ROWS)

    def _multiply(
        self,
        sums: tirx.Buffer,
        left: tuple[tirx.Buffer, tirx.Expr | int],
        right: MatrixFactor,
        memory: tirx.Buffer,
        term: tirx.Expr,
    ) -> None:
        """Write the multiply-adds of 16 terms, from ``term`` on: ``sums`` += ``left`` x ``right``."""
        loads = right.size // ROWS
        held = local("right", 4 * min(HELD, loads), "uint32")
        for first in range(0, loads, HELD):
            count = min(HELD, loads - first)
            start = right.cell(tirx.const(0, INDEX), term)
            right.hold_matrices(memory, held, self.lane, tirx.const(first * ROWS, INDEX), start, count)
            with unrolled(2 * count) as j:
                at = tirx.floordiv(j, 2) * 4 + tirx.floormod(j, 2)
                multiply_matrices((sums, (2 * first + j) * 4), left, (held, at), right.dtype)

    def _bring_columns(self, step: tirx.Expr) -> None:
        """Write the start of the copies of a tile of columns' factors."""
        for factor, at in zip(self.rights, self.of_columns, strict=True):
            self._bring(factor, at, step * self.tile.columns, tirx.const(0, INDEX))
        close_copies()

    def _bring(self, factor: MatrixFactor, memory: tirx.Buffer, result: tirx.Expr, term: tirx.Expr) -> None:
        """Write the start of the copies of a tile that begins at a result and a term; or its loads and stores, where
        it cannot be copied."""
        terms, zero = tirx.const(factor.reduced[0].extent, INDEX), tirx.const(0, INDEX)
        if factor.source is not None:
            factor.copy(memory, zero, self.thread, (result, term), terms, self.env)
            return
        coming = local("coming", factor.rounds * factor.lanes, factor.dtype)
        factor.fetch(coming, self.thread, (result, term), terms, self.env)
        factor.share(coming, memory, self.thread)

    def combine(self, values: tirx.Buffer, by: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]) -> None:
        """Write the combination of a number of each row over the four threads that share the row."""
        other = local("other", 1, SUMS)
        for distance in (1, 2):
            with unrolled(self.tile.own_rows) as i:
                exchange((other, 0), (values, i), distance)
                T.buffer_store(values, by(values[i], other[0]), [i])


def multiplies(weighted: Weighted) -> bool:
    """Return whether matrix units multiply the factors: all of one type of 16 bits."""
    factors = [narrow(each) for product in weighted.products for each in (product.left, product.right)]
    types = {str(each.ty.dtype) for each in (*factors, narrow(weighted.values))}
    return len(types) == 1 and all(tvm.DataType(dtype).itemsize == 2 for dtype in types)
