"""Register tiles: a small block of results stays in vector registers over the whole reduction."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import DataType, s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..kernels.matmul import WIDENED
from ..loops import Unsuited, extent_of, extents_of
from .squares import TURNED, turn_in_squares
from .tile_cost import Tile, tiles, vector_lanes
from .traits import CpuTraits

MAKES_SECOND = {TURNED, WIDENED}
"""Annotations of blocks that make the second operand of a product: tasks make their parts of it."""


def choose_tile(
    sch: s_tir.Schedule,
    rows: Sequence[LoopRV],
    column: LoopRV,
    traits: CpuTraits,
    choices: Choices,
    *,
    parts: Sequence[LoopRV] = (),
    vectors: int | None = None,
    from_memory: bool = False,
    by_row: bool = False,
    most: float | None = None,
    joins: bool = False,
    whole: bool = False,
    breaks: bool = False,
) -> Tile:
    """Choose a register tile for loops over results, of which each iteration of ``parts`` has its own. Narrow ones, of
    at most ``vectors`` along the columns, come first if that is given, unless they are high. ``by_row``: so do those of
    one row of taps. ``from_memory``: see :func:`tiles`. Those of more than ``most`` vectors come last. ``joins``,
    ``breaks``: see :func:`tiles`. ``whole``: those of two or more whole rows come first."""
    extents, count = extents_of(sch, rows), math.prod(extents_of(sch, parts))
    offered = tiles(extents, extent_of(sch, column), traits, count, from_memory=from_memory, joins=joins, breaks=breaks)
    if whole:
        offered.sort(key=lambda tile: tile.width < extent_of(sch, column) or tile.height == 1)
    if by_row:
        offered.sort(key=lambda tile: tile.rows[0] > 1)
    if vectors is not None:
        offered.sort(key=lambda tile: tile.vectors > vectors or tile.height > MOST_ROWS)
    if most is not None:
        offered.sort(key=lambda tile: tile.height * tile.vectors > most)
    return decided_tile(choices, offered)


MOST_ROWS = 8
"""Rows of the first operand that the first cache holds at once where they lie a multiple of a page apart: its ways."""


def decided_tile(choices: Choices, offered: Sequence[Tile]) -> Tile:
    """Return the tile of the decision ``tile``: its extents along rows and columns. Default: the first."""
    by_extents = {(*tile.rows, tile.width): tile for tile in offered}
    return by_extents[choices.choose("tile", list(by_extents), next(iter(by_extents)))]


def split_phases(sch: s_tir.Schedule, block: SBlockRV, rows: list[LoopRV]) -> tuple[list[LoopRV], list[LoopRV]]:
    """Split the row loops of a strided data gradient by phase: position modulo stride.

    Returns the row loops, and the phase loops of height and width (none for stride 1). All results of one phase read
    the same taps, so no inserted zero is multiplied.
    """
    strides = strides_of(sch, block)
    if all(stride == 1 for stride in strides):
        return rows, []
    if any(extent % stride for extent, stride in zip(extents_of(sch, rows[1:]), strides, strict=True)):
        raise Unsuited("some phases have one row or column less")
    (height, phase_h), (width, phase_w) = (
        sch.split(loop, [None, stride]) for loop, stride in zip(rows[1:], strides, strict=True)
    )
    return [rows[0], height, width], [phase_h, phase_w]


def strides_of(sch: s_tir.Schedule, block: SBlockRV) -> list[int]:
    """Return the strides of a data gradient's convolution; empty for other blocks."""
    return [int(stride) for stride in sch.get(block).annotations.get("strides", [])]


def rows_in_cache(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits) -> int:
    """Return how many rows of dY, with the matching rows of X, fill half of the L2 cache in a weight gradient."""
    operands = [[int(extent) for extent in region.source.ty.shape] for region in sch.get(block).reads]
    images = [shape for shape in operands if len(shape) == RANK_OF_IMAGES]
    rows = min(shape[1] for shape in images)
    return traits.cache_bytes // 2 // max(1, sum(4 * math.prod(shape[1:]) // rows for shape in images))


RANK_OF_IMAGES = 4


def inline_elementwise(sch: s_tir.Schedule, block: SBlockRV) -> SBlockRV | None:
    """Inline the element-wise consumers of ``block``, and their other producers, into the last consumer: the epilogue.

    Returns the epilogue, or None without consumers.

    Raises
    ------
    Unsuited
        The epilogue has results beyond those of ``block``, which no tile would write.
    """
    last = None
    consumers = sch.get_consumers(block)
    while consumers:
        last = consumers[0]
        consumers = sch.get_consumers(last)
        if consumers:
            sch.compute_inline(last)
    if last is not None and _has_more(_extents(sch, last), _shape(sch, block)):
        raise Unsuited("what comes behind is not element-wise")
    name = sch.get(block).name_hint
    while last is not None:
        beside = [other for other in sch.get_producers(last) if sch.get(other).name_hint != name]
        if not beside:
            break
        sch.compute_inline(beside[0])
    return last


def epilogue_of(sch: s_tir.Schedule, block: SBlockRV) -> SBlockRV:
    """Keep the results of ``block`` in registers, and return the block that writes them: its element-wise consumers, or
    a copy."""
    epilogue = inline_elementwise(sch, block)
    if epilogue is None:
        return sch.cache_write(block, 0, "local")
    sch.set_scope(block, 0, "local")
    return epilogue


def _shape(sch: s_tir.Schedule, block: SBlockRV) -> list[int]:
    return [int(extent) for extent in sch.get(block).writes[0].source.ty.shape]


def _extents(sch: s_tir.Schedule, block: SBlockRV) -> list[int]:
    """Return the shape of an epilogue's results: an update writes views of one axis."""
    return extents_of(sch, sch.get_loops(block))


def _has_more(shape: Sequence[int], than: Sequence[int]) -> bool:
    """Return whether ``shape`` exceeds ``than`` along an axis; for different ranks, whether their sizes differ."""
    if _joins_strips(shape, than):
        than = [*than[:-2], shape[-1]]
    if len(shape) != len(than):
        return math.prod(shape) != math.prod(than)
    return any(extent > other for extent, other in zip(shape, than, strict=True))


def _joins_strips(shape: Sequence[int], strips: Sequence[int]) -> bool:
    """Return whether ``shape`` joins column strips: [.., count, width] to [.., count * width]."""
    return len(shape) + 1 == len(strips) and shape[-1] == strips[-2] * strips[-1]


def register_tile(
    sch: s_tir.Schedule,
    block: SBlockRV,
    tile: Tile,
    rows: Sequence[LoopRV],
    column: LoopRV,
    reduced: Sequence[LoopRV],
    traits: CpuTraits,
    choices: Choices,
    *,
    outer: Sequence[LoopRV] = (),
    phases: Sequence[LoopRV] = (),
    columns_first: bool = False,
    unroll_reduced: int = 0,
    parallel: int | None = None,
    pack: int | None = None,
    made: SBlockRV | None = None,
) -> None:
    """Hold a tile of the results of ``block`` in registers, and run tiles in parallel.

    Loops, outermost first: ``outer``; tiles of ``rows``, with ``phases[0]`` before the last of them; tiles of
    ``column``; ``phases[1:]``; ``reduced``; the tile. ``columns_first``: column tiles precede row tiles, so that a
    strip of the second operand stays in cache. Phases are unrolled: adjacent results belong to different ones. The
    first ``parallel`` loops (default: all tile loops) are fused and run in parallel. The first ``unroll_reduced``
    reduction loops are unrolled. A padded first operand is padded per task, one image at a time. ``pack``: position of
    an operand of which each task first copies its part. A strip of a wide matrix maps to too few cache sets, and to too
    many pages. ``made``: block that turns or widens the second operand, of which each task makes its part.

    Decisions: ``parallel``, ``unroll_reduced`` and, where tasks pad or make an operand, ``tiles_of_task``.
    """
    padding = [each for each in sch.get_producers(block) if not MAKES_SECOND & set(sch.get(each).annotations)]
    row_outer, column_outer, inside = split_tile(sch, tile, rows, column)
    grid = [*row_outer[:-1], *phases[:1], row_outer[-1]]
    grid = [*outer, column_outer, *grid] if columns_first else [*outer, *grid, column_outer]
    last_task = grid.index(phases[0]) if phases else len(grid)
    parallel = choices.choose("parallel", range(1, last_task + 1), parallel or len(grid))
    unroll_reduced = _unrolled(sch, reduced, choices, unroll_reduced)
    grid += phases[1:]
    sch.reorder(*grid, *reduced, *inside)
    epilogue = epilogue_of(sch, block)
    if phases:
        high, wide = strides_of(sch, block)
        sch.transform_block_layout(epilogue, lambda n, h, w, c: (n, h // high, h % high, w // wide, w % wide, c))
    else:
        keep_strips(sch, epilogue, block)
    sch.reverse_compute_at(epilogue, grid[-1])
    for loop in sch.get_loops(epilogue)[len(grid) : -1]:
        sch.unroll(loop)
    vectorize_inner(sch, epilogue, tile.lanes, masks=True)
    images = grid[: len(outer) + 1 + columns_first]
    tasks = grid[:parallel]
    if padding and parallel == len(images) + 1:
        tasks[-1], _ = sch.split(tasks[-1], [None, _tiles_of_task(sch, tasks, padding[0], traits, choices)])
    if made is not None and parallel == len(grid):
        tasks = [*tasks[: len(outer) + 1], sch.fuse(*tasks[len(outer) + 1 :])]
        tasks[-1], _ = sch.split(tasks[-1], [None, _tiles_of_turned(sch, tasks, tile.height, traits, choices)])
    task = sch.fuse(*tasks)
    sch.parallel(task)
    sch.vectorize(inside[-1])
    for loop in (*phases, *inside[:-1], *reduced[:unroll_reduced]):
        sch.unroll(loop)
    for padded in padding:
        made_of = sch.get_producers(padded)
        for each in (padded, *made_of):
            copy_at(sch, each, task if parallel >= len(images) else images[-1], tile.lanes)
    if made is not None:
        make_at(sch, made, task, tile.lanes, traits)
    if pack is not None:
        copy_at(sch, sch.cache_read(block, pack, "global"), task, tile.lanes)
    sch.decompose_reduction(block, reduced[0])


def keep_strips(sch: s_tir.Schedule, epilogue: SBlockRV, block: SBlockRV) -> None:
    """Split the columns of an epilogue that joins the column strips of ``block`` into these strips."""
    shape = _shape(sch, block)
    if not _joins_strips(_extents(sch, epilogue), shape):
        return

    def strips(*at: tirx.Var) -> list[tirx.Expr]:
        return [*at[:-1], tirx.indexdiv(at[-1], shape[-1]), tirx.indexmod(at[-1], shape[-1])]

    sch.transform_block_layout(epilogue, tirx.IndexMap.from_func(strips, ndim=len(shape) - 1))


def _unrolled(sch: s_tir.Schedule, reduced: Sequence[LoopRV], choices: Choices, default: int) -> int:
    """Return how many reduction loops to unroll, from the first."""
    rounds = [math.prod(extents_of(sch, reduced[:count])) for count in range(len(reduced) + 1)]
    offered = [count for count, each in enumerate(rounds) if each <= MOST_UNROLLED or count == default]
    return choices.choose("unroll_reduced", offered, default)


MOST_UNROLLED = 64
"""Most reduction iterations that a decision may unroll: the tile's code still fits the instruction cache."""


def _tiles_of_task(
    sch: s_tir.Schedule, tasks: Sequence[LoopRV], padded: SBlockRV, traits: CpuTraits, choices: Choices
) -> int:
    """Return how many vertically adjacent tiles form a task: neighbours share padded rows.

    The default is the largest that balances the cores and fits a quarter of the L2 cache; half of it in eight bits.
    """
    *images, rows = extents_of(sch, tasks)
    _, *image = (int(extent) for extent in sch.get(padded).writes[0].source.ty.shape)
    size = _itemsize(sch, padded)
    row_bytes = size * math.prod(image) // rows
    most = traits.cache_bytes // (2 if size == 1 else 4)
    default = max(
        n
        for n in divisors(rows)
        if n == 1 or (math.prod(images) * rows // n % traits.cores == 0 and n * row_bytes <= most)
    )
    return choices.choose("tiles_of_task", divisors(rows), default)


def _tiles_of_turned(
    sch: s_tir.Schedule, tasks: Sequence[LoopRV], height: int, traits: CpuTraits, choices: Choices
) -> int:
    """Return how many row tiles of a ``height`` form a task that turns an operand. More tasks balance the cores, and
    turn it more often: the default takes the least time by :data:`TURNING_ROWS`."""
    *others, count = extents_of(sch, tasks)
    offered = divisors(count)

    def rows(size: int) -> int:
        """Return the rows that the busiest core computes, in strips."""
        return math.ceil(math.prod(others) * (count // size) / traits.cores) * (size * height + TURNING_ROWS)

    return choices.choose("tiles_of_task", offered, min(offered, key=rows))


TURNING_ROWS = 6
"""Rows that a core computes while it turns a strip: a square of 16 vectors takes 16 loads, 64 shuffles, 16 stores."""


def is_balanced(tasks: int, traits: CpuTraits) -> bool:
    """Return whether the cores get equally many of ``tasks``, or nearly."""
    return tasks % traits.cores == 0 or tasks >= 8 * traits.cores


def block_by_block(
    sch: s_tir.Schedule,
    block: SBlockRV,
    tile: Tile,
    rows: Sequence[LoopRV],
    column: LoopRV,
    reduced: Sequence[LoopRV],
    choices: Choices,
    *,
    tasks: Sequence[LoopRV],
    most: int,
) -> None:
    """Accumulate a small result in memory over blocks of a long reduction, so that the operands are read once.

    Loops, outermost first: ``tasks``, fused and parallel; ``reduced[0]``; blocks of at most ``most`` iterations of
    ``reduced[1]``; the tile loops; the iterations of a block; ``reduced[2:]``; the tile. LLVM keeps a tile in registers
    within a block. Each task pads its part of the first operand.

    Decisions: ``rounds_of_block``.
    """
    padding = sch.get_producers(block)
    row_outer, column_outer, inside = split_tile(sch, tile, rows, column)
    first, second, *others = reduced
    offered = divisors(extent_of(sch, second))
    size = choices.choose("rounds_of_block", offered, max(n for n in offered if n <= max(1, most)))
    blocks, rounds = sch.split(second, [None, size])
    sch.reorder(*tasks, first, blocks, *row_outer, column_outer, rounds, *others, *inside)
    task = sch.fuse(*tasks)
    sch.parallel(task)
    sch.vectorize(inside[-1])
    for loop in inside[:-1]:
        sch.unroll(loop)
    for padded in padding:
        copy_at(sch, padded, task, tile.lanes)
    sch.decompose_reduction(block, first)


def copy_at(sch: s_tir.Schedule, block: SBlockRV, loop: LoopRV, lanes: int) -> None:
    """Compute in each iteration of ``loop`` the part of ``block``'s result that is read there."""
    sch.compute_at(block, loop)
    extent, most = extent_of(sch, sch.get_loops(block)[-1]), lanes * WORD // _itemsize(sch, block)
    whole = [n for n in divisors(extent) if n <= most and n % lanes == 0]
    vectorize_inner(sch, block, max(whole, default=vector_lanes(extent, most)))


def make_at(
    sch: s_tir.Schedule, block: SBlockRV, loop: LoopRV, lanes: int, traits: CpuTraits, *, fetches: bool = True
) -> None:
    """Turn or widen, in each iteration of ``loop``, the part of a second operand that is read there. ``fetches``: see
    :func:`turn_in_squares`."""
    if TURNED in sch.get(block).annotations:
        sch.compute_at(block, loop)
        turn_in_squares(sch, block, traits, fetches=fetches)
    else:
        copy_at(sch, block, loop, lanes)


def pad_at_once(sch: s_tir.Schedule, block: SBlockRV, lanes: int) -> None:
    """Compute a block in a parallel loop of its own."""
    *rows, channel = sch.get_loops(block)
    vectorize_inner(sch, block, vector_lanes(extent_of(sch, channel), lanes))
    sch.parallel(sch.fuse(*(rows[:-1] or rows)))


WORD = 4
"""Bytes of a float32, whose lanes a target's vectors have."""


def _itemsize(sch: s_tir.Schedule, block: SBlockRV) -> int:
    return DataType(str(sch.get(block).writes[0].source.ty.dtype)).itemsize


def split_tile(
    sch: s_tir.Schedule, tile: Tile, rows: Sequence[LoopRV], column: LoopRV
) -> tuple[list[LoopRV], LoopRV, list[LoopRV]]:
    """Split loops by tile: return those over row tiles, over column tiles, and inside a tile (vector last)."""
    pairs = [sch.split(loop, [None, size]) for loop, size in zip(rows, tile.rows, strict=True)]
    column_outer, column_inner = sch.split(column, [None, tile.width])
    return (
        [outer for outer, _ in pairs],
        column_outer,
        [*(inner for _, inner in pairs), *sch.split(column_inner, [None, tile.lanes])],
    )


MOST_VECTORS = 8
"""Most vectors along a row that a copy unrolls."""


def vectorize_inner(sch: s_tir.Schedule, block: SBlockRV, lanes: int, *, masks: bool = False) -> None:
    """Vectorise the innermost loop of a block; unroll a short loop over vectors. A loop with a tail stays one over
    numbers, unless ``masks``: store part of the last vector."""
    loop = sch.get_loops(block)[-1]
    extent = extent_of(sch, loop)
    if lanes == 1 or (extent % lanes and not masks):
        return
    if extent > lanes:
        outer, loop = sch.split(loop, [None, lanes])
        if extent <= MOST_VECTORS * lanes:
            sch.unroll(outer)
    sch.vectorize(loop)
