"""Register tiles: a small block of a product's results stays in vector registers over the whole reduction."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from .traits import Traits

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Tile:
    """How many results a register tile holds along each loop over rows, and how many columns, as vectors."""

    rows: tuple[int, ...]
    lanes: int
    vectors: int

    @property
    def height(self) -> int:
        """Rows in the tile."""
        return math.prod(self.rows)

    @property
    def width(self) -> int:
        """Columns in the tile."""
        return self.lanes * self.vectors


def choose(sch: s_tir.Schedule, options: Sequence[Choice], default: int = 0) -> Choice:
    """One of the options: ``default``, or, where a tuner replays the schedule, the one that it samples."""
    index = sch.sample_categorical(list(range(len(options))), [1 / len(options)] * len(options), decision=default)
    return options[int(sch.get(index))]


def extents_of(sch: s_tir.Schedule, loops: Sequence[LoopRV]) -> list[int]:
    """How often each loop runs."""
    return [int(sch.get(loop).extent) for loop in loops]


def split_by_kind(sch: s_tir.Schedule, block: SBlockRV) -> tuple[list[LoopRV], list[LoopRV]]:
    """The loops of an untouched block: over results, and over what is summed."""
    kinds = [int(iter_var.iter_type) for iter_var in sch.get(block).iter_vars]
    loops = sch.get_loops(block)
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    return spatial, [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 2]


def vector_lanes(columns: int, traits: Traits) -> int:
    """Lanes of the vectors along ``columns`` contiguous results: what divides them, powers of two first."""
    lanes = traits.lanes
    while lanes > 4 and columns % lanes:
        lanes //= 2
    if columns % lanes == 0:
        return lanes
    return max(n for n in range(1, traits.lanes + 1) if columns % n == 0)


def tiles(rows: Sequence[int], columns: int, traits: Traits) -> list[Tile]:
    """Register tiles that cover ``rows`` x ``columns`` results exactly, the most promising first.

    A tile of ``t`` rows and ``v`` vectors loads t + v operands for t * v multiplications, and needs enough of them in
    flight to hide their latency; two registers are for operands.
    """
    lanes = vector_lanes(columns, traits)
    found = []
    for vectors in _divisors(columns // lanes):
        for split in itertools.product(*(_divisors(extent) for extent in rows)):
            height = math.prod(split)
            innermost_first = all(
                part == 1 or whole == inner for part, whole, inner in zip(split, rows[1:], split[1:], strict=False)
            )
            if innermost_first and height * vectors + vectors + 1 <= traits.registers:
                found.append(Tile(split, lanes, vectors))
    cores = traits.cores

    def cost(tile: Tile) -> float:
        loads = (tile.height + tile.vectors) / (tile.height * tile.vectors)
        latency = max(1.0, 10 / (tile.height * tile.vectors))
        count = math.prod(rows) * columns // (tile.height * tile.width)
        balance = math.ceil(count / cores) * cores / count
        return balance * latency * (1 + 0.5 * loads)

    return sorted(found, key=cost)[:16]


def _divisors(extent: int) -> list[int]:
    return [n for n in range(1, extent + 1) if extent % n == 0]


def inline_elementwise(sch: s_tir.Schedule, block: SBlockRV) -> SBlockRV | None:
    """Inline what is computed element by element behind ``block`` into the last of it: the epilogue; None without."""
    root = sch.get_sblock("root")
    blocks = sch.get_child_blocks(root)
    names = [sch.get(other).name_hint for other in blocks]
    position = names.index(sch.get(block).name_hint)
    last = None
    for other in blocks[position + 1 :]:
        try:
            sch.compute_inline(other)
        except s_tir.ScheduleError:
            last = other
    return last


def register_tile(
    sch: s_tir.Schedule,
    block: SBlockRV,
    tile: Tile,
    rows: Sequence[LoopRV],
    column: LoopRV,
    reduced: Sequence[LoopRV],
    *,
    outer: Sequence[LoopRV] = (),
    columns_first: bool = False,
    unroll_reduced: int = 0,
) -> tuple[list[LoopRV], LoopRV]:
    """Hold a tile of the results of ``block`` in registers, and run tiles in parallel.

    ``outer`` are further loops over results, outside the tiles; ``columns_first`` puts the loop over columns of tiles
    outside the one over rows, so that a strip of the second operand stays in cache; ``unroll_reduced`` is how many of
    the innermost loops of the reduction to unroll. Returns the parallel loop and the one that the epilogue runs in.
    """
    row_outer, row_inner = zip(
        *(sch.split(loop, [None, size]) for loop, size in zip(rows, tile.rows, strict=True)), strict=True
    )
    column_outer, column_inner = sch.split(column, [None, tile.width])
    vector_outer, vector = sch.split(column_inner, [None, tile.lanes])
    grid = [column_outer, *row_outer] if columns_first else [*row_outer, column_outer]
    sch.reorder(*outer, *grid, *reduced, *row_inner, vector_outer, vector)
    epilogue = inline_elementwise(sch, block)
    if epilogue is None:
        epilogue = sch.cache_write(block, 0, "local")
    else:
        sch.set_scope(block, 0, "local")
    at = grid[-1]
    sch.reverse_compute_at(epilogue, at)
    vectorize_inner(sch, epilogue, tile.lanes)
    parallel = sch.fuse(*outer, *grid)
    sch.parallel(parallel)
    sch.vectorize(vector)
    for loop in (*row_inner, vector_outer, *(reduced[len(reduced) - unroll_reduced :] if unroll_reduced else ())):
        sch.unroll(loop)
    sch.decompose_reduction(block, reduced[0])
    return parallel


def vectorize_inner(sch: s_tir.Schedule, block: SBlockRV, lanes: int) -> None:
    """Vectorise the innermost loop of a block, and unroll what is left of it."""
    loop = sch.get_loops(block)[-1]
    if int(sch.get(loop).extent) > lanes:
        outer, loop = sch.split(loop, [None, lanes])
        sch.unroll(outer)
    with contextlib.suppress(s_tir.ScheduleError):
        sch.vectorize(loop)
