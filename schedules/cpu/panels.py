"""Matrix products of packed panels: each task copies both operands into the order in which register tiles read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..loops import extent_of, extents_of
from .tile import epilogue_of, is_balanced, split_tile, vectorize_inner
from .tile_cost import Tile
from .traits import CpuTraits

MISS_CYCLES = 14
"""Cycles per line that comes from beyond the L2 cache and that no prefetcher expects: about 200 cycles of latency,
shared by the 12 to 16 lines that a first cache waits for at once."""
LINE = 16
"""float32 elements of a cache line."""


def panels_pay(tile: Tile, traits: CpuTraits) -> bool:
    """Return whether a core multiplies a term of a tile faster than it fetches the first operand's line for it.

    Where the first operand is contiguous along the rows, each term of a sum is in a line and a page of its own, and
    multiples of a page share few cache sets. A long sum's lines are gone when the next tile reads them.
    """
    return tile.height * tile.vectors / traits.fma_ports < MISS_CYCLES


def panels(
    sch: s_tir.Schedule,
    block: SBlockRV,
    tile: Tile,
    row: LoopRV,
    column: LoopRV,
    term: LoopRV,
    traits: CpuTraits,
    choices: Choices,
    *,
    outer: Sequence[LoopRV],
    operands: tuple[int, int],
) -> None:
    """Schedule ``C[i, j] = sum_k A[k, i] * B[k, j]``. ``operands``: positions of A and B among the reads of ``block``.

    Loops, outermost first: ``outer`` and blocks of columns, parallel; panels of rows; strips of a block; tiles of a
    panel; ``term``; the tile. A task copies its block of B into strips as wide as a tile, and A panel by panel, in
    parts as high as a tile: it reads every line once, and whole. (Goto and van de Geijn, Anatomy of High-Performance
    Matrix Multiplication, 2008.)

    Decisions: ``tiles_of_panel``, ``strips_of_task``.
    """
    (row_outer,), column_outer, inside = split_tile(sch, tile, [row], column)
    offered = divisors(extent_of(sch, row_outer))
    height = max(n for n in offered if n == 1 or n * tile.height <= LINE)
    panel, tile_of_panel = sch.split(row_outer, [None, choices.choose("tiles_of_panel", offered, height)])
    strip_bytes = 4 * extent_of(sch, term) * tile.width
    strips = _strips_of_task(sch, outer, column_outer, strip_bytes, traits, choices)
    columns, strip = sch.split(column_outer, [None, strips])
    sch.reorder(*outer, columns, panel, strip, tile_of_panel, term, *inside)
    epilogue = epilogue_of(sch, block)
    sch.reverse_compute_at(epilogue, tile_of_panel)
    for loop in sch.get_loops(epilogue)[len(outer) + 4 : -1]:
        sch.unroll(loop)
    vectorize_inner(sch, epilogue, tile.lanes)
    task = sch.fuse(*outer, columns)
    sch.parallel(task)
    sch.vectorize(inside[-1])
    for loop in inside[:-1]:
        sch.unroll(loop)
    first, second = operands
    _pack(sch, block, first, tile.height, panel)
    _pack(sch, block, second, tile.width, task)
    sch.decompose_reduction(block, term)


def _strips_of_task(
    sch: s_tir.Schedule,
    outer: Sequence[LoopRV],
    columns: LoopRV,
    strip_bytes: int,
    traits: CpuTraits,
    choices: Choices,
) -> int:
    """Return how many strips form a task, which copies all of A. The default is the most that fit half of the L2 cache
    and balance the cores."""
    batch, strips = math.prod(extents_of(sch, outer)), extent_of(sch, columns)
    offered = divisors(strips)
    fit = [n for n in offered if n * strip_bytes <= traits.cache_bytes // 2]
    balanced = [n for n in fit if is_balanced(batch * strips // n, traits)]
    return choices.choose("strips_of_task", offered, max(balanced, default=1))


def _pack(sch: s_tir.Schedule, block: SBlockRV, index: int, width: int, place: LoopRV) -> None:
    """Copy, in each iteration of ``place``, what is read there of a matrix [.., k, n]: as [.., n / width, k, width]."""

    def packed(*at: tirx.Var) -> list[tirx.Expr]:
        *batch, term, column = at
        return [*batch, tirx.indexdiv(column, width), term, tirx.indexmod(column, width)]

    copy = sch.cache_read(block, index, "global")
    sch.transform_layout(copy, ("write", 0), packed)
    sch.compute_at(copy, place)
    part, column = sch.split(sch.get_loops(copy)[-1], [None, width])
    if extent_of(sch, part) * width <= LINE:
        sch.unroll(part)
    sch.vectorize(column)
