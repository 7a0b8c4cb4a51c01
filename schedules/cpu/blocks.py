"""Products of few rows by a large matrix: block by block of the terms of its sums."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..loops import extent_of
from .packing import is_wide
from .prefetch_blocks import BLOCKS
from .squares import TURNED
from .tile import copy_at, epilogue_of, is_balanced, keep_strips, make_at, pad_at_once, split_tile, vectorize_inner
from .tile_cost import Tile
from .traits import CpuTraits

SHARE_OF_BLOCK = 1 / 12
"""Largest block of a strip of B, relative to the L2 cache, which also holds the next block. From measurements on Zen 5:
from 1/32 to 1/6, products are within 5 % of each other."""
SHARE_OF_TURNED = 1 / 4
"""Largest block of a matrix that is turned: with 2048 terms at once, 49 rows are 1.1 times as fast as with 1024."""
SUMS_IN_CACHE = 48 * 1024
"""Most bytes of a strip's results, which a task keeps in the first cache of a wide core."""
FEWEST_ROWS = 32
"""Fewest rows of results: with 64 rows of 768 columns, blocks are 1.2 times as fast as an unpacked strip."""
MOST_ROWS_OF_TURNED = 128
"""Most rows of results for which B is turned in blocks: with 49 rows it is 1.1 to 1.2 times as fast as whole strips,
with 196 rows 0.95 to 0.98 times."""


def blocks_pay(height: int, strips: int, tile: Tile, traits: CpuTraits, *, is_turned: bool) -> bool:
    """Return whether a core multiplies so fast that it waits for strips of a B from memory, as one of ``strips`` tasks,
    and holds the results of ``height`` rows. From measurements on Zen 5, B in no cache: 1.1 to 1.8 times as fast for 49
    rows, 1.0 to 1.2 times for 128 to 256. Cores that are not wide have not been measured."""
    is_held = height >= FEWEST_ROWS and 4 * height * tile.width <= SUMS_IN_CACHE
    is_held = is_held and (not is_turned or height <= MOST_ROWS_OF_TURNED)
    return is_wide(traits) and is_held and is_balanced(strips, traits)


def in_blocks(
    sch: s_tir.Schedule,
    block: SBlockRV,
    tile: Tile,
    rows: Sequence[LoopRV],
    column: LoopRV,
    reduced: Sequence[LoopRV],
    traits: CpuTraits,
    choices: Choices,
    *,
    outer: Sequence[LoopRV],
    operand: int,
    padding: SBlockRV | None,
    made: SBlockRV | None,
) -> None:
    """Schedule ``Y[rows, columns] = sum A * B`` for few rows and a B that comes from memory.

    Loops, outermost first: ``outer`` and strips of columns, parallel; blocks of terms; tiles of rows; the terms of a
    block; the tile. A task copies, or turns, its part of B block by block, while the results of its strip stay in the
    first cache. While it multiplies one block, it prefetches the next: memory and multiply-adds overlap, where a strip
    that is fetched as a whole is waited for. ``operand``: position of B among the reads of ``block``. ``padding``:
    block that pads A, once for all tasks. ``made``: block that turns or widens B.

    Decisions: ``terms_of_block``.
    """
    turned = made if made is not None and TURNED in sch.get(made).annotations else None
    row_outer, column_outer, inside = split_tile(sch, tile, rows, column)
    *taps, last = reduced
    offered = [n for n in divisors(extent_of(sch, last)) if n > 1]
    share = SHARE_OF_BLOCK if turned is None or taps else SHARE_OF_TURNED
    most = int(share * traits.cache_bytes) // (4 * tile.width)
    size = choices.choose("terms_of_block", offered, max((n for n in offered if n <= most), default=offered[0]))
    blocks, term = sch.split(last, [None, size])
    sch.reorder(*outer, column_outer, *taps, blocks, *row_outer, term, *inside)
    each, tiles = sch.fuse(*taps, blocks), sch.fuse(*row_outer)
    epilogue = epilogue_of(sch, block)
    keep_strips(sch, epilogue, block)
    task = sch.fuse(*outer, column_outer)
    is_whole = extent_of(sch, each) == 1  # so each tile is done with it
    sch.reverse_compute_at(epilogue, tiles if is_whole else task)
    if is_whole:
        for loop in sch.get_loops(epilogue)[3:-1]:
            sch.unroll(loop)
    vectorize_inner(sch, epilogue, tile.lanes, masks=True)
    sch.parallel(task)
    sch.vectorize(inside[-1])
    for loop in inside[:-1]:
        sch.unroll(loop)
    sch.annotate(term, BLOCKS, [extent_of(sch, tiles), extent_of(sch, each), tile.width])
    if padding is not None:
        pad_at_once(sch, padding, tile.lanes)
    if made is not None:
        make_at(sch, made, each, tile.lanes, traits, fetches=False)
    else:
        copy_at(sch, sch.cache_read(block, operand, "global"), each, tile.lanes)
    sch.decompose_reduction(block, term if is_whole else each)
