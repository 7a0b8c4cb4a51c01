"""Tiles of products: what a block of threads computes at once, and how many blocks share a sum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ...decisions import Choices
from ..traits import GpuTraits

WORD = 4
"""Bytes of a sum."""


class Tile(Protocol):
    """Results of a block, terms that it holds in shared memory at once, and results of a thread."""

    @property
    def rows(self) -> int:
        """Rows of a block."""

    @property
    def columns(self) -> int:
        """Columns of a block."""

    @property
    def depth(self) -> int:
        """Terms of a step."""

    @property
    def thread_rows(self) -> int:
        """Rows of a thread."""

    @property
    def thread_columns(self) -> int:
        """Columns of a thread."""

    @property
    def threads(self) -> int:
        """Threads of a block."""

    @property
    def stages(self) -> int:
        """Steps that are on their way, or in use, at once."""

    @property
    def registers(self) -> int:
        """Registers of a thread, about."""

    def shared_bytes(self, widths: tuple[int, int]) -> int:
        """Return the shared memory of a block, in bytes. ``widths``: bytes of an element of each factor."""

    def cycles(self, widths: tuple[int, int]) -> float:
        """Return the cycles of a core for a step's loads from shared memory, and its multiply-adds."""


@dataclass(frozen=True)
class ThreadTile:
    """Tile of which each thread multiplies its own part."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int

    stages = 2

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return (self.rows // self.thread_rows) * (self.columns // self.thread_columns)

    @property
    def registers(self) -> int:
        """Registers of a thread, about: sums, factors and their places."""
        return 40 + self.thread_rows * self.thread_columns + 2 * (self.thread_rows + self.thread_columns)

    def shared_bytes(self, widths: tuple[int, int]) -> int:
        """Return the shared memory of a block, in bytes. ``widths``: bytes of an element of each factor."""
        return self.depth * (self.rows * widths[0] + self.columns * widths[1] + 2 * PAD_BYTES)

    def cycles(self, widths: tuple[int, int]) -> float:
        """Return the cycles of a core for a step's loads from shared memory, and its multiply-adds."""
        read = self.thread_rows * widths[0] + self.thread_columns * widths[1]
        multiply = self.thread_rows * self.thread_columns / LANES
        return self.depth * self.threads * (multiply + read / NEAR / SHARED_READS)


PAD_BYTES = 16
"""Bytes after each row of a tile in shared memory, so that what is stored across falls in several banks."""
SIZES = (8, 16, 32, 64, 128)
"""Rows and columns of a block's tile."""
SHAPES = ((1, 1), (1, 4), (2, 2), (2, 4), (4, 4), (8, 4), (4, 8), (8, 8))
"""Rows and columns of a thread."""
LEAST_THREADS = 64
"""Fewest threads of a block."""
SPLITS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Blocks that share a sum."""


@dataclass(frozen=True)
class Problem:
    """Extents of a batched product, and how it may be computed."""

    batch: int
    rows: int
    columns: int
    terms: int
    lanes: tuple[int, int]
    """Elements of a load of the left and of the right factor."""
    widths: tuple[int, int]
    """Bytes of an element of the left and of the right factor."""
    scratch: int
    """Most elements that parts of sums may take: 0 if no blocks may share a sum."""


AnyTile = TypeVar("AnyTile", bound=Tile)


def choose_tile(
    problem: Problem, offered: Mapping[tuple[int, ...], AnyTile], traits: GpuTraits, choices: Choices
) -> tuple[AnyTile, int]:
    """Return the tile of a product, and the blocks that share a sum: the decisions ``tile`` and ``splits``.

    ``offered``: tiles by what the decision calls them.
    """
    names = {tile: name for name, tile in offered.items()}
    best = min(
        itertools.product(offered.values(), _splits(problem)),
        key=lambda option: cost(problem, option[0], option[1], traits),
    )
    tile = offered[choices.choose("tile", list(offered), names[best[0]])]
    able = [splits for splits in _splits(problem) if splits <= math.ceil(problem.terms / tile.depth)]
    return tile, choices.choose("splits", able, min(able, key=lambda splits: cost(problem, tile, splits, traits)))


def _splits(problem: Problem) -> list[int]:
    """Return how many blocks may share a sum."""
    most = problem.scratch // (problem.batch * problem.rows * problem.columns)
    return [splits for splits in SPLITS if splits <= max(1, most)]


def tiles(traits: GpuTraits, widths: tuple[int, int] = (WORD, WORD)) -> list[ThreadTile]:
    """Return the tiles that a GPU can hold. ``widths``: bytes of an element of each factor."""
    found = []
    for rows, columns, (high, wide) in itertools.product(SIZES, SIZES, SHAPES):
        tile = ThreadTile(rows, columns, 16 if rows + columns <= 128 else 8, high, wide)
        fits = tile.shared_bytes(widths) <= traits.shared_bytes and tile.threads <= min(traits.threads, 256)
        if rows % high == 0 and columns % wide == 0 and tile.threads >= LEAST_THREADS and fits:
            found.append(tile)
    return found


LANES = 128
"""Multiply-adds that a core starts in a cycle."""
BUSY = 256
"""Threads with which a core hides latencies."""
REGISTERS = 65536
"""Registers of a core."""
FAR = 32
"""Bytes that a core reads from the second cache in a cycle."""
NEAR = 128
"""Bytes that a core moves to or from shared memory in a cycle."""
MEMORY = 16
"""Bytes that a core's share of the memory's bandwidth moves in a cycle."""
WAIT = 40
"""Cycles that the threads of a block wait for each other in a step."""
INSTRUCTIONS = 12
"""Instructions that find the place of a load, and whether it is inside."""
MOST_LOADS = 4
"""Loads of one factor that a thread keeps on their way without running out of registers."""
LAUNCH = 4000
"""Cycles that another launch takes."""


def cost(problem: Problem, tile: Tile, splits: int, traits: GpuTraits) -> float:
    """Estimate the cycles of a product.

    Each step of a block brings its factors into shared memory; each thread loads its rows and columns from there, and
    does their multiply-adds, also what is beyond the edge of the result. Blocks beside each other on a core hide
    waiting. Parts of sums are written and read once.
    """
    blocks = problem.batch * math.ceil(problem.rows / tile.rows) * math.ceil(problem.columns / tile.columns) * splits
    steps = math.ceil(math.ceil(problem.terms / tile.depth) / splits)
    brought = tile.depth * (tile.rows * problem.widths[0] + tile.columns * problem.widths[1])
    bring = brought * (1 / FAR + 1 / NEAR)
    loads = [tile.depth * of / lanes for of, lanes in zip((tile.rows, tile.columns), problem.lanes, strict=True)]
    bring += sum(loads) * INSTRUCTIONS / LANES + sum(max(0, each / tile.threads - MOST_LOADS) for each in loads) * WAIT
    in_turn = math.ceil(blocks / traits.cores)
    beside = max(1, min(in_turn, REGISTERS // (tile.threads * tile.registers)))
    busy = min(1.0, beside * tile.threads / BUSY)
    arithmetic = in_turn * steps * ((tile.cycles(problem.widths) + bring) / busy + WAIT / (beside * (tile.stages - 1)))
    if splits == 1:
        return arithmetic
    parts = 2 * splits * problem.batch * problem.rows * problem.columns * WORD
    return arithmetic + parts / (MEMORY * traits.cores) + LAUNCH


SHARED_READS = 4
"""Threads that read one element of shared memory in one access: neighbours share rows or columns."""
