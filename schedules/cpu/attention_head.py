"""One head of attention, whose loops the schedules of attention and of its gradients write."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV
from tvm.script.ir_builder import tirx as T

from ..decisions import Choices
from ..emit import INDEX, vector, where
from ..kernels import SMALL
from ..kernels.attention import Scoring, element, number, sums_of
from ..kernels.functions import exp
from .emit import Number, buffer, loop, unravelled
from .squares import squares, turned
from .traits import CpuTraits
from .written_product import Packed, column_tiles, multiply, register_tile, tiles_of

BLOCKS = (128, 96, 64, 48, 32, 24, 16, 8, 4, 1)
"""Queries of a block to choose from."""
SHARE_OF_SCORES = 1 / 2
"""Largest part of a core's cache that the scores of a block take."""
LEAST_TASKS = 8
"""Tasks a core that balance, however many there are."""
Store = Callable[[tirx.Expr, tirx.Expr, tirx.Expr], None]
"""Writes the store of a number, by row and column."""


class Head:
    """One head of attention, while its loops are written."""

    def __init__(
        self,
        sch: s_tir.Schedule,
        block: SBlockRV,
        out: tirx.Buffer,
        q: tirx.Buffer,
        k: tirx.Buffer,
        masks: Sequence[tirx.Buffer],
        traits: CpuTraits,
        choices: Choices,
        *,
        held: int,
    ) -> None:
        self.scoring = Scoring.of(sch.get(block).annotations, masks)
        self.sums, self.traits = sums_of(q.dtype), traits
        itemsize = tvm.DataType(self.sums).itemsize
        self.lanes = max(1, traits.lanes * 4 // itemsize)
        self.queries, self.keys = int(q.shape[-2]), int(k.shape[-2])
        self.heads = [int(extent) for extent in out.shape[:-2]]
        self.batch: list[tirx.Expr] = []
        """Place of the head, in a task."""
        self.block: tirx.Expr | None = None
        """Number of a task's only block."""
        self.is_triangular = self.scoring.causal and not masks
        """Whether no query has a weight for what comes after it: then it is not computed."""
        self.tile = register_tile(self.keys, self.lanes, traits, even=self.is_triangular)
        self.pitch = self._pitch()
        fitting = [n for n in BLOCKS if held * n * self.pitch * itemsize <= SHARE_OF_SCORES * traits.cache_bytes]
        most = max(fitting, default=self.tile.rows)
        blocks = math.ceil(self.queries / most)
        default = min(self.queries, math.ceil(self.queries / blocks / self.tile.rows) * self.tile.rows)
        offered = dict.fromkeys([default, *(n for n in BLOCKS if n < self.queries)])
        self.rows = choices.choose("rows", list(offered), default)
        """Queries of a block."""
        heads = math.prod(self.heads)
        self.is_split = heads % traits.cores != 0 and heads < LEAST_TASKS * traits.cores

    def _pitch(self) -> int:
        """Return the elements from a row of scores to the next: an odd number of vectors, so that rows do not meet in
        the same sets of a cache."""
        return (math.ceil(self.keys / self.lanes) | 1) * self.lanes

    @contextmanager
    def task(self, split: bool) -> Iterator[None]:
        """Loop over heads, and with ``split`` over the blocks of each, in parallel."""
        heads, blocks = math.prod(self.heads), math.ceil(self.queries / self.rows)
        kind = T.parallel if heads * self.queries * self.keys > SMALL else T.serial
        with kind(tirx.const(heads * blocks if split else heads, INDEX)) as task:
            self.batch = unravelled(tirx.floordiv(task, blocks) if split else task, self.heads)
            self.block = tirx.floormod(task, blocks) if split else None
            yield

    def write_blocks(self, write: Callable[[tirx.Expr, int], None]) -> None:
        """Write the blocks of a task: ``write`` gets the first query of a block, and their number."""
        whole, rest = divmod(self.queries, self.rows)
        if whole:
            if self.block is None:
                with loop(whole) as block:
                    write(block * self.rows, self.rows)
            else:
                with where(self.block < whole):
                    write(self.block * self.rows, self.rows)
        if rest:
            last = tirx.const(whole * self.rows, INDEX)
            with nullcontext() if self.block is None else where(self.block == whole):
                write(last, rest)

    def reach(self, first: tirx.Expr, count: int) -> Number:
        """Return the keys that a block of queries has weights for: whole tiles of them."""
        if not self.is_triangular:
            return self.keys
        width = self.tile.columns
        return tirx.min(tirx.floordiv(first + count + width - 1, width) * width, tirx.const(self.keys, INDEX))

    def weights(self, name: str) -> tirx.Buffer:
        """Make scratch for a number of each query of a block and each key."""
        return buffer(name, self.rows * self.pitch, self.sums)

    def packed(self, operand: tirx.Buffer) -> Packed:
        """Write a head's keys or values (float [.., keys, width]) to scratch, turned and packed by tiles of keys."""
        width = int(operand.shape[-1])
        packed = Packed(buffer("packed", self.keys * width, self.sums), width)
        for tiles, _ in column_tiles(self.keys, self.tile):
            side = self._side(operand, tiles.size)
            with loop(tiles.tiles) as strip, loop(tiles.size // side) as down, loop(width // side) as across:
                first, key, term = tiles.first + strip * tiles.size, down * side, across * side
                rows = [self._vector(operand, first + key + n, term, side) for n in range(side)]
                for n, column in enumerate(turned(rows)):
                    place = packed.place(term + n, first, tiles.size, key)
                    T.buffer_store(packed.buffer, column, [tirx.Ramp(place, 1, side) if side > 1 else place])
        return packed

    def _side(self, operand: tirx.Buffer, keys: int) -> int:
        """Return the side of the squares in which shuffles turn an operand: 1 to turn it element by element."""
        rows, width = (int(extent) for extent in operand.shape[-2:])
        is_whole = operand.dtype == "float32" and rows == self.keys
        return next((n for n in squares(self.traits) if is_whole and keys % n == width % n == 0), 1)

    def _vector(self, operand: tirx.Buffer, key: tirx.Expr, term: tirx.Expr, lanes: int) -> tirx.Expr:
        at = (*self.batch, key, term)
        return number(operand, at) if lanes == 1 else T.bind(element(operand, (*at[:-1], tirx.Ramp(term, 1, lanes))))

    def clear(self, gradient: tirx.Buffer) -> None:
        """Write zeros to the gradient of a head's keys or values."""
        width = int(gradient.shape[-1])
        with loop(self.keys) as key, loop(width) as column:
            T.buffer_store(gradient, tirx.const(0, gradient.dtype), [*self.batch, key, column])

    def against_keys(
        self, operand: tirx.Buffer, keys: Packed, first: tirx.Expr, count: int, reach: Number, store: Store
    ) -> None:
        """Write the products of rows of queries with keys. ``store`` gets the query within the block, and the key."""
        multiply(
            tiles_of(count, self.tile.rows),
            column_tiles(self.keys, self.tile, reach),
            keys.terms,
            lambda row, term: number(operand, (*self.batch, first + row, term)),
            keys.element,
            store,
            self.sums,
        )

    def softmax(self, scores: tirx.Buffer, row: tirx.Expr, reach: Number) -> tuple[tirx.Expr, tirx.Expr]:
        """Write the powers of a row of scores in their place. Returns its largest score, and the sum of its powers."""
        largest = self.reduced(reach, lambda key: scores[row * self.pitch + key], tirx.min_value(self.sums), tirx.max)

        def power(key: tirx.Expr) -> tirx.Expr:
            place = row * self.pitch + key
            T.buffer_store(scores, exp(scores[place] - largest), [place])
            return scores[place]

        return largest, self.reduced(reach, power, tirx.const(0, self.sums), tirx.Add)

    def sum_of_products(self, a: tirx.Buffer, b: tirx.Buffer, row: tirx.Expr, reach: Number) -> tirx.Expr:
        """Write the sum over keys of the products of two rows in scratch."""

        def product(key: tirx.Expr) -> tirx.Expr:
            return a[row * self.pitch + key] * b[row * self.pitch + key]

        return self.reduced(reach, product, tirx.const(0, self.sums), tirx.Add)

    def reduced(
        self,
        reach: Number,
        value: Callable[[tirx.Expr], tirx.Expr],
        start: tirx.Expr,
        combine: Callable[[tirx.Expr, tirx.Expr], tirx.Expr],
    ) -> tirx.Expr:
        """Write the reduction of numbers of keys: lane by lane, then halves of the lanes, then what is left."""
        parts, result = buffer("parts", self.lanes, self.sums, "local"), buffer("result", 1, self.sums, "local")
        with vector(self.lanes) as lane:
            T.buffer_store(parts, start, [lane])
        whole, rest = self._vectors(reach)
        with loop(whole) as step, vector(self.lanes) as lane:
            T.buffer_store(parts, combine(parts[lane], value(step * self.lanes + lane)), [lane])
        half = self.lanes // 2
        while half:
            with vector(half) as lane:
                T.buffer_store(parts, combine(parts[lane], parts[half + lane]), [lane])
            half //= 2
        T.buffer_store(result, parts[0], [0])
        with loop(rest) as key:
            T.buffer_store(result, combine(result[0], value(whole * self.lanes + key)), [0])
        return T.bind(result[0])

    def for_keys(self, reach: Number, write: Callable[[tirx.Expr], None]) -> None:
        """Write the loop over keys, in vectors."""
        whole, rest = self._vectors(reach)
        with loop(whole) as step, vector(self.lanes) as lane:
            write(step * self.lanes + lane)
        with loop(rest) as key:
            write(whole * self.lanes + key)

    def _vectors(self, reach: Number) -> tuple[Number, Number]:
        """Return how many whole vectors keys fill, and the keys that are left."""
        if isinstance(reach, int):
            return divmod(reach, self.lanes)
        return tirx.floordiv(reach, self.lanes), tirx.floormod(reach, self.lanes)

    def of_queries(self, weights: tirx.Buffer, operand: tirx.Buffer, count: int, reach: Number, store: Store) -> None:
        """Write the products of a block's weights with rows of keys. ``store`` gets the query within the block."""
        width = int(operand.shape[-1])
        tile = register_tile(width, self.lanes, self.traits)
        multiply(
            tiles_of(count, tile.rows),
            column_tiles(width, tile),
            reach,
            lambda row, key: weights[row * self.pitch + key],
            lambda key, first, _, column: number(operand, (*self.batch, key, first + column)),
            store,
            self.sums,
        )

    def add_to_keys(
        self,
        result: tirx.Buffer,
        weights: tirx.Buffer,
        operand: tirx.Buffer,
        first: tirx.Expr,
        count: int,
        reach: Number,
    ) -> None:
        """Write the addition of a block's weights, turned, times rows of queries to the gradient of keys."""
        width = int(operand.shape[-1])
        tile = register_tile(width, self.lanes, self.traits, even=self.is_triangular)
        multiply(
            tiles_of(self.keys, tile.rows, None if isinstance(reach, int) else reach),
            column_tiles(width, tile),
            count,
            lambda key, row: weights[row * self.pitch + key],
            lambda row, start, _, column: number(operand, (*self.batch, first + row, start + column)),
            lambda key, column, total: T.buffer_store(result, total, [*self.batch, key, column]),
            self.sums,
            lambda key, column: result[(*self.batch, key, column)],
        )
