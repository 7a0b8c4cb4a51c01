"""Weight gradients that update the weight, and sum gradient times weight for each output channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..kernels.reduction import CHANNEL_SUM
from ..loops import Unsuited, extent_of, extents_of
from .packing import is_wide
from .tile import copy_at, decided_tile, is_balanced, split_tile, vectorize_inner
from .tile_cost import Tile, tiles
from .traits import CpuTraits

LONG_ROW, OF_LONG_ROWS, OF_SHORT_ROWS = 2048, 4, 2
"""Bytes of a row of W from which tiles are best so many vectors wide, if W exceeds the L2 cache, and so many otherwise.
From measurements on Zen 5, with momentum: 64 columns instead of 32 take 0.7 to 0.96 times as long for weights of 1 to 9
MB with 512 to 2048 columns, and 1.07 to 1.5 times for smaller ones, and for 256 columns."""


def sum_of(sch: s_tir.Schedule, block: SBlockRV) -> SBlockRV | None:
    """Return the block that sums for each channel what ``block`` computes; None if there is none."""
    consumers = sch.get_consumers(block)
    return next((each for each in consumers if sch.get(each).annotations.get("schedule_rule") == CHANNEL_SUM), None)


def update_and_sum(
    sch: s_tir.Schedule,
    block: SBlockRV,
    rows: Sequence[LoopRV],
    column: LoopRV,
    reduced: Sequence[LoopRV],
    traits: CpuTraits,
    choices: Choices,
    *,
    operand: int,
) -> None:
    """Schedule ``dW[rows, columns] = sum X * dY``, the sum of dW * W over all rows, and an update of W.

    Loops, outermost first: strips of columns, parallel; tiles of rows; ``reduced``; the tile, which is added to the
    sums and updates W while it is in registers. A task first copies its strip of dY, where that pays. ``operand``:
    position of dY among the reads of ``block``.

    Decisions: ``tile``, ``pack``.
    """
    total = sum_of(sch, block)
    if total is None or sch.get_producers(block):
        raise Unsuited("each task would pad all of X")
    (update,) = (each for each in sch.get_consumers(block) if sch.get(each).name_hint != sch.get(total).name_hint)
    height, columns = math.prod(extents_of(sch, rows)), extent_of(sch, column)
    is_long = 4 * height * columns >= traits.cache_bytes and 4 * columns >= LONG_ROW
    wanted = OF_LONG_ROWS if is_long else OF_SHORT_ROWS

    def order(tile: Tile) -> tuple[bool, int]:
        return not is_balanced(columns // tile.width, traits), abs(tile.vectors - wanted)

    tile = decided_tile(choices, sorted(tiles(extents_of(sch, rows), columns, traits), key=order))
    row_outer, strip, inside = split_tile(sch, tile, rows, column)
    sch.reorder(strip, *row_outer, *reduced, *inside)
    sch.set_scope(block, 0, "local")
    for each in (total, update):
        sch.reverse_compute_at(each, row_outer[-1])
        for loop in sch.get_loops(each)[len(row_outer) + 1 : -1]:
            sch.unroll(loop)
        vectorize_inner(sch, each, tile.lanes)
    sch.parallel(strip)
    sch.vectorize(inside[-1])
    for loop in inside[:-1]:
        sch.unroll(loop)
    if choices.choose("pack", (False, True), is_wide(traits)):
        copy_at(sch, sch.cache_read(block, operand, "global"), strip, tile.lanes)
    sch.decompose_reduction(total, row_outer[0])
    sch.decompose_reduction(block, reduced[0])
