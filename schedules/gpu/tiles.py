"""Tiles of products: what a block of threads computes at once, and how many blocks share a sum."""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple, dataclass

from ..decisions import Choices
from .traits import GpuTraits

WORD = 4
"""Bytes of an element."""


@dataclass(frozen=True)
class Tile:
    """Results of a block, terms that it holds in shared memory at once, and results of a thread."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return (self.rows // self.thread_rows) * (self.columns // self.thread_columns)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, in bytes."""
        return WORD * self.depth * (self.rows + self.columns + 2 * PAD)


PAD = 4
"""Elements after each row of a tile in shared memory, so that what is stored across falls in several banks."""
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
    scratch: int
    """Most elements that parts of sums may take: 0 if no blocks may share a sum."""


def choose_tile(problem: Problem, traits: GpuTraits, choices: Choices) -> tuple[Tile, int]:
    """Return the tile of a product, and the blocks that share a sum: the decisions ``tile`` and ``splits``."""
    offered = {astuple(tile): tile for tile in tiles(traits)}
    best = min(
        itertools.product(offered.values(), _splits(problem)),
        key=lambda option: cost(problem, option[0], option[1], traits),
    )
    tile = offered[choices.choose("tile", list(offered), astuple(best[0]))]
    able = [splits for splits in _splits(problem) if splits <= math.ceil(problem.terms / tile.depth)]
    return tile, choices.choose("splits", able, min(able, key=lambda splits: cost(problem, tile, splits, traits)))


def _splits(problem: Problem) -> list[int]:
    """Return how many blocks may share a sum."""
    most = problem.scratch // (problem.batch * problem.rows * problem.columns)
    return [splits for splits in SPLITS if splits <= max(1, most)]


def tiles(traits: GpuTraits) -> list[Tile]:
    """Return the tiles that a GPU can hold."""
    found = []
    for rows, columns, (high, wide) in itertools.product(SIZES, SIZES, SHAPES):
        tile = Tile(rows, columns, 16 if rows + columns <= 128 else 8, high, wide)
        fits = tile.shared_bytes <= traits.shared_bytes and tile.threads <= min(traits.threads, 256)
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
    size, edges = tile.thread_rows * tile.thread_columns, tile.thread_rows + tile.thread_columns
    multiply = tile.depth * tile.threads * size / LANES
    load = tile.depth * tile.threads * edges * WORD / NEAR / SHARED_READS
    bring = tile.depth * (tile.rows + tile.columns) * WORD * (1 / FAR + 1 / NEAR)
    loads = [tile.depth * of / lanes for of, lanes in zip((tile.rows, tile.columns), problem.lanes, strict=True)]
    bring += sum(loads) * INSTRUCTIONS / LANES + sum(max(0, each / tile.threads - MOST_LOADS) for each in loads) * WAIT
    in_turn = math.ceil(blocks / traits.cores)
    beside = max(1, min(in_turn, REGISTERS // (tile.threads * (40 + size + 2 * edges))))
    busy = min(1.0, beside * tile.threads / BUSY)
    arithmetic = in_turn * steps * ((multiply + load + bring) / busy + WAIT / beside)
    if splits == 1:
        return arithmetic
    parts = 2 * splits * problem.batch * problem.rows * problem.columns * WORD
    return arithmetic + parts / (MEMORY * traits.cores) + LAUNCH


SHARED_READS = 4
"""Threads that read one element of shared memory in one access: neighbours share rows or columns."""
