"""Products ``W C`` of which each thread multiplies its own rows and columns, term by term.

A tile of W lies in shared memory. Factors come there step by step, those of the next step being on their way in
registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...emit import unrolled, where
from ..emit import lanes_of, local, shared, synchronise
from .contraction import INDEX, Axis, Env
from .factor import Factor
from .tiles import PAD_BYTES, WORD
from .weighted import SUMS, Weighted, WeightedBlock, filled

VECTOR = lanes_of(SUMS)
PAD = PAD_BYTES // WORD


@dataclass(frozen=True)
class ThreadTile:
    """Rows and columns of W of a block, terms that it holds in shared memory at once, rows and columns of a thread."""

    rows: int
    columns: int
    depth: int
    own_rows: int
    own_columns: int

    @property
    def across(self) -> int:
        """Threads that share rows."""
        return self.columns // self.own_columns

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows // self.own_rows * self.across

    def own_width(self, width: int) -> int:
        """Return the columns of C of a thread: whole vectors."""
        own = math.ceil(width / self.across)
        return own if own <= 2 else math.ceil(own / VECTOR) * VECTOR

    def shared_bytes(self, width: int) -> int:
        """Return the shared memory of a block, in bytes."""
        weights = self.columns * (self.rows + PAD)
        right = max(self.columns, self.own_width(width) * self.across)
        return WORD * (weights + self.depth * (self.rows + right + 2 * PAD) + self.rows * self.across)


class ThreadBlock(WeightedBlock):
    """A block whose threads multiply. Factors are ``SUMS`` in shared memory."""

    tile: ThreadTile

    def __init__(self, weighted: Weighted, tile: ThreadTile, env: Env, first: tirx.Expr, thread: tirx.Expr) -> None:
        super().__init__(weighted, tile, env, first, thread)
        self.lanes = tirx.floordiv(thread, tile.across), tirx.floormod(thread, tile.across)
        """Place of a thread among those of its block, along rows and columns."""

        def factor(name: str, value: tirx.Expr, axis: Axis, terms: Axis, size: int, own: int) -> Factor:
            return Factor(name, value, (axis,), (terms,), int(axis.extent), size, own, tile.depth, tile.threads, SUMS)

        self.factors = [
            (
                factor("left", each.left, weighted.rows, each.terms, tile.rows, tile.own_rows),
                factor("right", each.right, weighted.columns, each.terms, tile.columns, tile.own_columns),
            )
            for each in weighted.products
        ]
        self.rows, self.columns = self.factors[0]
        self.values = factor(
            "values", weighted.values, weighted.width, weighted.columns, self.own_width * tile.across, self.own_width
        )

    @property
    def adjacent(self) -> int:
        """Columns of C of a thread that are beside each other, in registers too."""
        return math.gcd(VECTOR, self.own_width)

    @property
    def is_first_of_row(self) -> tirx.Expr:
        """Whether a thread is the first of those that share its rows."""
        return self.lanes[1] == 0

    def row(self, i: tirx.Expr) -> tirx.Expr:
        """Return the row, in the tile, of a thread's row ``i``."""
        return self.rows.place_of(i, self.lanes[0])

    def column(self, j: tirx.Expr) -> tirx.Expr:
        """Return the column, in the tile, of a thread's column ``j`` of W."""
        return self.columns.place_of(j, self.lanes[1])

    def column_of_values(self, j: tirx.Expr) -> tirx.Expr:
        """Return the column of C of a thread's column ``j`` of it."""
        return self.values.place_of(j, self.lanes[1])

    def number(self, i: tirx.Expr, j: tirx.Expr, wide: int) -> tirx.Expr:
        """Return the place in registers of a thread's row ``i`` and column ``j``, of ``wide`` columns."""
        return i * wide + j

    def start(self, begin: tirx.Expr, end: tirx.Expr) -> None:
        """Write the buffers of shared memory."""
        tile = self.tile
        self.memory = (
            shared("left_tile", tile.depth * self.rows.pitch, SUMS),
            shared("right_tile", tile.depth * max(self.columns.pitch, self.values.pitch), SUMS),
        )
        self.weights = shared("weights_tile", tile.columns * self.rows.pitch, SUMS)
        """Tile of W, a column after the other."""
        if self.weighted.softmax:
            self.of_rows = shared("of_rows", tile.rows * tile.across, SUMS)
            """A number of each thread for each of its rows."""

    def products(self, step: tirx.Expr) -> list[tirx.Buffer]:
        """Write the products of a tile of columns, and return a thread's elements of each."""
        return [self._product(*factors, step * self.tile.columns) for factors in self.factors]

    def _product(self, left: Factor, right: Factor, column: tirx.Expr) -> tirx.Buffer:
        """Write a tile of a product, and return its elements of a thread."""
        sums = filled("products", self.tile.own_rows * self.tile.own_columns, 0)
        held = local("left", left.own, SUMS), local("right", right.own, SUMS)
        streams = [_Stream(left, self.memory[0], self.first), _Stream(right, self.memory[1], column)]
        terms = int(left.reduced[0].extent)

        def multiply(_first: tirx.Expr, term: tirx.Expr) -> None:
            left.hold(self.memory[0], held[0], term, self.lanes[0])
            right.hold(self.memory[1], held[1], term, self.lanes[1])
            _multiply(sums, *held)

        self._bring(streams, 0, math.ceil(terms / self.tile.depth), terms, multiply)
        return sums

    def add(self, weights: tirx.Buffer, step: tirx.Expr, end: tirx.Expr) -> None:
        """Write the tile of W to shared memory, and the addition of what it adds to the sums."""
        tile, values = self.tile, self.values
        with unrolled(tile.own_columns) as j, unrolled(tile.own_rows) as i:
            place = self.column(j) * self.rows.pitch + self.row(i)
            T.buffer_store(self.weights, weights[self.number(i, j, tile.own_columns)], [place])
        held = local("weights", tile.own_rows, SUMS), local("values", self.own_width, SUMS)

        def multiply(first: tirx.Expr, term: tirx.Expr) -> None:
            self.rows.hold(self.weights, held[0], first + term, self.lanes[0])
            values.hold(self.memory[1], held[1], term, self.lanes[1])
            _multiply(self.sums, *held)

        stream = _Stream(values, self.memory[1], tirx.const(0, INDEX))
        columns = int(self.weighted.columns.extent)
        self._bring([stream], step * tile.columns, tile.columns // tile.depth, columns, multiply)

    def _bring(
        self,
        streams: Sequence[_Stream],
        first: tirx.Expr | int,
        steps: int,
        terms: int,
        multiply: Callable[[tirx.Expr, tirx.Expr], None],
    ) -> None:
        """Write the steps that bring factors into shared memory, from term ``first``, and multiply them there.

        ``multiply`` gets the number of terms before the step, and a term of it. All threads have read the factors, and
        whatever else ``multiply`` reads, when the last step ends.
        """
        depth = self.tile.depth
        coming = [local("coming", each.factor.rounds * each.factor.lanes, SUMS) for each in streams]

        def fetch(step: tirx.Expr | int) -> None:
            for (factor, _, start), registers in zip(streams, coming, strict=True):
                factor.fetch(registers, self.thread, (start, first + step * depth), tirx.const(terms, INDEX), self.env)

        def share() -> None:
            for (factor, memory, _), registers in zip(streams, coming, strict=True):
                factor.share(registers, memory, self.thread)

        fetch(0)
        share()
        synchronise()
        with T.serial(tirx.const(steps, INDEX)) as step:
            with where(step + 1 < steps):
                fetch(step + 1)
            with T.serial(tirx.const(depth, INDEX), unroll=True) as term:
                multiply(step * depth, term)
            synchronise()
            with where(step + 1 < steps):
                share()
            synchronise()

    def combine(self, values: tirx.Buffer, by: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]) -> None:
        """Write the combination of a number of each row over the threads that share the row, in a fixed order."""
        tile = self.tile

        def place(i: tirx.Expr) -> tirx.Expr:
            return self.row(i) * tile.across

        with unrolled(tile.own_rows) as i:
            T.buffer_store(self.of_rows, values[i], [place(i) + self.lanes[1]])
        synchronise()
        with unrolled(tile.own_rows) as i:
            T.buffer_store(values, self.of_rows[place(i)], [i])
        with T.serial(tirx.const(1, INDEX), tirx.const(tile.across, INDEX)) as other, unrolled(tile.own_rows) as i:
            T.buffer_store(values, by(values[i], self.of_rows[place(i) + other]), [i])


class _Stream(NamedTuple):
    """A factor on its way to shared memory."""

    factor: Factor
    memory: tirx.Buffer
    start: tirx.Expr
    """First row or column of its tile."""


def _multiply(sums: tirx.Buffer, left: tirx.Buffer, right: tirx.Buffer) -> None:
    """Write the multiply-adds of one term: ``sums`` += ``left`` x ``right``."""
    high, wide = (int(each.shape[0]) for each in (left, right))
    with unrolled(high) as i, unrolled(wide) as j:
        T.buffer_store(sums, sums[i * wide + j] + left[i] * right[j], [i * wide + j])
