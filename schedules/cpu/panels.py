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
TASKS_TO_PACK_ONCE = 2
"""Fewest tasks a core for which the first operand is packed before them, instead of by each of them. From measurements
on Zen 5: 1.03 to 1.06 times as fast for two tasks a core, 1.13 to 1.25 for four to sixteen, 0.97 to 1.02 for one."""
PACKED_AT_ONCE = 16
"""Largest part of the first operand that is packed at once, relative to the L2 cache. From measurements on Zen 5: parts
of 3 MB take 1.04 times as long as all of 12 MB."""


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

    Loops, outermost first: parts of A; ``outer`` and blocks of columns, parallel; panels of rows; strips of a block;
    tiles of a panel; ``term``; the tile. A task copies its block of B into strips as wide as a tile. A is copied in
    panels as high as a tile, whose lines are read once, and whole: a part in parallel before the tasks, or each panel
    by each task. (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008.)

    Decisions: ``tiles_of_panel``, ``strips_of_task``, ``panels_at_once``.
    """
    (row_outer,), column_outer, inside = split_tile(sch, tile, [row], column)
    offered = divisors(extent_of(sch, row_outer))
    height = max(n for n in offered if n == 1 or n * tile.height <= LINE)
    panel, tile_of_panel = sch.split(row_outer, [None, choices.choose("tiles_of_panel", offered, height)])
    strip_bytes = 4 * extent_of(sch, term) * tile.width
    strips = _strips_of_task(sch, outer, column_outer, strip_bytes, traits, choices)
    columns, strip = sch.split(column_outer, [None, strips])
    tasks = math.prod(extents_of(sch, [*outer, columns]))
    panel_bytes = 4 * extent_of(sch, term) * extent_of(sch, tile_of_panel) * tile.height
    at_once = _panels_at_once(sch, panel, panel_bytes * math.prod(extents_of(sch, outer)), tasks, traits, choices)
    part, panel = sch.split(panel, [None, at_once or extent_of(sch, panel)])
    sch.reorder(part, *outer, columns, panel, strip, tile_of_panel, term, *inside)
    epilogue = epilogue_of(sch, block)
    sch.reverse_compute_at(epilogue, tile_of_panel)
    for loop in sch.get_loops(epilogue)[len(outer) + 5 : -1]:
        sch.unroll(loop)
    vectorize_inner(sch, epilogue, tile.lanes, masks=True)
    task = sch.fuse(*outer, columns)
    sch.parallel(task)
    sch.vectorize(inside[-1])
    for loop in inside[:-1]:
        sch.unroll(loop)
    first, second = operands
    _pack(sch, block, first, tile.height, part if at_once else panel, in_parallel=bool(at_once))
    _pack(sch, block, second, tile.width, task)
    sch.decompose_reduction(block, term)


def _panels_at_once(
    sch: s_tir.Schedule, panel: LoopRV, panel_bytes: int, tasks: int, traits: CpuTraits, choices: Choices
) -> int:
    """Return how many panels are packed in parallel before the tasks read them; 0: each task packs them all, one by
    one."""
    offered = divisors(extent_of(sch, panel))
    fit = [n for n in offered if n * panel_bytes <= PACKED_AT_ONCE * traits.cache_bytes]
    default = max(fit, default=0) if tasks >= TASKS_TO_PACK_ONCE * traits.cores else 0
    return choices.choose("panels_at_once", [0, *offered], default)


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


def _pack(
    sch: s_tir.Schedule, block: SBlockRV, index: int, width: int, place: LoopRV, *, in_parallel: bool = False
) -> None:
    """Copy, in each iteration of ``place``, what is read there of a matrix [.., k, n]: as [.., n / width, k, width].
    ``in_parallel``: in blocks of terms, which read lines of adjacent rows and write lines of adjacent terms."""

    def packed(*at: tirx.Var) -> list[tirx.Expr]:
        *batch, term, column = at
        return [*batch, tirx.indexdiv(column, width), term, tirx.indexmod(column, width)]

    read = sch.get(block).reads[index]
    made = [each for each in sch.get_producers(block) if sch.get(each).writes[0].source.same_as(read.source)]
    copy = made[0] if made else sch.cache_read(block, index, "global")
    sch.transform_layout(copy, ("write", 0), packed)
    sch.compute_at(copy, place, preserve_unit_loops=True)
    *batch, term, columns = sch.get_loops(copy)[-len(read.region) :]
    if in_parallel:
        terms = max(n for n in divisors(extent_of(sch, term)) if n <= LINE)
        parts = max(1, LINE // width)
        term, inner = sch.split(term, [None, terms])
        columns, part, column = sch.split(columns, [None, parts, width])
        sch.reorder(term, columns, inner, part, column)
        sch.parallel(sch.fuse(*batch, term))
    else:
        part, column = sch.split(columns, [None, width])
    if extent_of(sch, part) * width <= LINE:
        sch.unroll(part)
    sch.vectorize(column)
