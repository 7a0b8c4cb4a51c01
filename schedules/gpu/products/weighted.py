"""Loops of ``W C``, where W is computed tile by tile, and never is in memory.

A block of threads holds a tile of rows, and goes through the columns of W tile by tile: it computes a tile of W from
products, and adds its product with C to sums in registers. (Dao et al., FlashAttention, 2022.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ...emit import unrolled, vector, where
from ...kernels.functions import exp
from ..emit import bound, local
from .contraction import INDEX, Axis, Env, places

ABOVE, BELOW = "above", "below"
SUMS = "float32"
"""Type of W and of sums."""
Place = Sequence[tirx.Expr]
"""Position along the batch's axes, row, and column."""


@dataclass(frozen=True)
class Product:
    """``A B^T``: a factor of each row of W and one of each column, and the axis that they are summed over."""

    left: tirx.Expr
    right: tirx.Expr
    terms: Axis

    @property
    def turned(self) -> Product:
        """The product with rows as columns."""
        return Product(self.right, self.left, self.terms)


@dataclass(frozen=True)
class Softmax:
    """Softmax of the rows of W: its elements are logarithms of weights, and each row is divided by its sum."""

    inverse: Callable[[tirx.Expr], tirx.Expr]
    """Inverse of the sum of a row."""
    store: Callable[[Sequence[tirx.Expr], tirx.Expr, tirx.Expr], None]
    """Writes the stores of a row's statistics: its place, largest logarithm, inverse of the sum."""


@dataclass(frozen=True)
class Weighted:
    """A product ``W C``, with factors over the variables of its axes."""

    batch: tuple[Axis, ...]
    rows: Axis
    columns: Axis
    width: Axis
    """Columns of C."""
    products: tuple[Product, ...]
    """Products from which an element of W is computed."""
    weight: Callable[[Sequence[tirx.Expr], Place], tirx.Expr]
    """Returns an element of W, of its products and its place."""
    values: tirx.Expr
    """Elements of C."""
    store: Callable[[tirx.Expr, Place], None]
    """Writes the store of a result. Its place has a column of C."""
    triangle: str | None = None
    """Where W is 0: ``ABOVE`` or ``BELOW`` its diagonal."""
    softmax: Softmax | None = None


class WeightTile(Protocol):
    """Elements of W of a block, and of a thread."""

    @property
    def rows(self) -> int:
        """Rows of a block."""

    @property
    def columns(self) -> int:
        """Columns of W that a block computes at once."""

    @property
    def threads(self) -> int:
        """Threads of a block."""

    @property
    def own_rows(self) -> int:
        """Rows of a thread."""

    @property
    def own_columns(self) -> int:
        """Columns of W of a thread."""

    def own_width(self, width: int) -> int:
        """Return the columns of C of a thread."""


class WeightedBlock(ABC):
    """A block of threads, while its loops are written."""

    def __init__(self, weighted: Weighted, tile: WeightTile, env: Env, first: tirx.Expr, thread: tirx.Expr) -> None:
        self.weighted, self.tile, self.env, self.thread = weighted, tile, env, thread
        self.first = first
        """First row."""
        self.batch = [env[axis.var] for axis in weighted.batch]
        self.own_width = tile.own_width(int(weighted.width.extent))

    @property
    @abstractmethod
    def adjacent(self) -> int:
        """Columns of C of a thread that are beside each other, in registers too."""

    @abstractmethod
    def row(self, i: tirx.Expr) -> tirx.Expr:
        """Return the row, in the tile, of a thread's row ``i``."""

    @abstractmethod
    def column(self, j: tirx.Expr) -> tirx.Expr:
        """Return the column, in the tile, of a thread's column ``j`` of W."""

    @abstractmethod
    def column_of_values(self, j: tirx.Expr) -> tirx.Expr:
        """Return the column of C of a thread's column ``j`` of it."""

    @abstractmethod
    def number(self, i: tirx.Expr, j: tirx.Expr, wide: int) -> tirx.Expr:
        """Return the place in registers of a thread's row ``i`` and column ``j``, of ``wide`` columns."""

    @property
    @abstractmethod
    def is_first_of_row(self) -> tirx.Expr:
        """Whether a thread is the first of those that share its rows."""

    @abstractmethod
    def start(self, begin: tirx.Expr, end: tirx.Expr) -> None:
        """Write what comes before the tiles of columns, from ``begin`` to before ``end``."""

    @abstractmethod
    def products(self, step: tirx.Expr) -> list[tirx.Buffer]:
        """Write the products of a tile of columns, and return a thread's elements of each."""

    @abstractmethod
    def add(self, weights: tirx.Buffer, step: tirx.Expr, end: tirx.Expr) -> None:
        """Write the addition of what a tile of W adds to the sums, given a thread's elements of the tile."""

    @abstractmethod
    def combine(self, values: tirx.Buffer, by: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]) -> None:
        """Write the combination of a number of each row over the threads that share the row, in a fixed order."""

    def write(self) -> None:
        """Write all loops of the block."""
        tile = self.tile
        begin, end = self._steps()
        self.start(begin, end)
        self.sums = filled("sums", tile.own_rows * self.own_width, 0)
        if self.weighted.softmax:
            self.largest = filled("largest", tile.own_rows, tirx.min_value(SUMS))
            self.total = filled("total", tile.own_rows, 0)
        with T.serial(begin, end, annotations={"disable_unroll": True}) as step:
            weights = self._weighed(self.products(step), step * tile.columns)
            self.add(weights, step, end)
        self._store()

    def _steps(self) -> tuple[tirx.Expr, tirx.Expr]:
        """Return the range of tiles of columns that are not 0."""
        size, triangle = self.tile.columns, self.weighted.triangle
        end = tirx.const(math.ceil(int(self.weighted.columns.extent) / size), INDEX)
        begin = tirx.floordiv(self.first, size) if triangle == BELOW else tirx.const(0, INDEX)
        if triangle == ABOVE:
            end = tirx.min(end, tirx.floordiv(self.first + self.tile.rows + size - 1, size))
        return begin, end

    def _weighed(self, products: Sequence[tirx.Buffer], first: tirx.Expr) -> tirx.Buffer:
        """Write a tile of W that begins at a column, and return a thread's elements: beyond the last row or column, 0.
        They are where those of the first product were."""
        tile, weighted, weights = self.tile, self.weighted, products[0]
        beyond = tirx.min_value(SUMS) if weighted.softmax else tirx.const(0, SUMS)
        with unrolled(tile.own_rows) as i, unrolled(tile.own_columns) as j:
            at = self.number(i, j, tile.own_columns)
            place = self.first + self.row(i), first + self.column(j)
            is_inside = tirx.all(place[0] < weighted.rows.extent, place[1] < weighted.columns.extent)
            weight = weighted.weight([each[at] for each in products], (*self.batch, *place))
            T.buffer_store(weights, tirx.if_then_else(is_inside, weight, beyond), [at])
        if weighted.softmax:
            self._take_powers(weights, first)
        return weights

    def _take_powers(self, weights: tirx.Buffer, first: tirx.Expr) -> None:
        """Write the powers of a tile of logarithms, relative to the largest of their rows so far.

        What was summed relative to a smaller one is scaled. (Milakov and Gimelshein, Online normalizer calculation for
        softmax, 2018.)
        """
        tile = self.tile
        most, scale = local("most", tile.own_rows, SUMS), local("scale", 1, SUMS)
        with unrolled(tile.own_rows) as i:
            T.buffer_store(most, self.largest[i], [i])
            with unrolled(tile.own_columns) as j:
                T.buffer_store(most, tirx.max(most[i], weights[self.number(i, j, tile.own_columns)]), [i])
        self.combine(most, tirx.max)
        with unrolled(tile.own_rows) as i:
            T.buffer_store(scale, exp(self.largest[i] - most[i]), [0])
            T.buffer_store(self.largest, most[i], [i])
            T.buffer_store(self.total, self.total[i] * scale[0], [i])
            with unrolled(self.own_width) as j:
                at = self.number(i, j, self.own_width)
                T.buffer_store(self.sums, self.sums[at] * scale[0], [at])
            with unrolled(tile.own_columns) as j:
                at = self.number(i, j, tile.own_columns)
                is_column = first + self.column(j) < self.weighted.columns.extent
                power = tirx.if_then_else(is_column, exp(weights[at] - most[i]), tirx.const(0, SUMS))
                T.buffer_store(weights, power, [at])
                T.buffer_store(self.total, self.total[i] + weights[at], [i])

    def _store(self) -> None:
        """Write the stores of a thread's results, and of its rows' statistics."""
        tile, weighted = self.tile, self.weighted
        if weighted.softmax:
            self._divide(weighted.softmax)
        lanes = math.gcd(int(weighted.width.extent), self.adjacent)
        with unrolled(tile.own_rows) as i, unrolled(self.own_width // lanes) as j:
            row, column = self.first + self.row(i), self.column_of_values(j * lanes)
            with where(tirx.all(row < weighted.rows.extent, column < weighted.width.extent)), vector(lanes) as lane:
                total = self.sums[self.number(i, j * lanes, self.own_width) + lane]
                weighted.store(total, (*self.batch, row, column + lane))

    def _divide(self, softmax: Softmax) -> None:
        """Write the division of sums by the totals of their rows."""
        tile = self.tile
        inverse = local("inverse", 1, SUMS)
        self.combine(self.total, lambda one, other: one + other)
        with unrolled(tile.own_rows) as i:
            T.buffer_store(inverse, softmax.inverse(self.total[i]), [0])
            with unrolled(self.own_width) as j:
                at = self.number(i, j, self.own_width)
                T.buffer_store(self.sums, self.sums[at] * inverse[0], [at])
            row = self.first + self.row(i)
            with where(tirx.all(self.is_first_of_row, row < self.weighted.rows.extent)):
                softmax.store((*self.batch, row), self.largest[i], inverse[0])


def written(weighted: Weighted, tile: WeightTile, kind: Callable[..., WeightedBlock]) -> tirx.Stmt:
    """Return the loops: one launch, a block of a kind for each tile of rows."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        down = math.ceil(int(weighted.rows.extent) / tile.rows)
        blocks = down * math.prod(int(axis.extent) for axis in weighted.batch)
        with bound(blocks, "blockIdx.x") as block, bound(tile.threads, "threadIdx.x") as thread:
            env = places(tirx.floordiv(block, down), weighted.batch)
            kind(weighted, tile, env, tirx.floormod(block, down) * tile.rows, thread).write()
    return builder.get().body


def filled(name: str, extent: int, value: tirx.Expr | int) -> tirx.Buffer:
    """Registers that start as a number."""
    registers = local(name, extent, SUMS)
    with unrolled(extent) as at:
        T.buffer_store(registers, tirx.const(value, SUMS) if isinstance(value, int) else value, [at])
    return registers
