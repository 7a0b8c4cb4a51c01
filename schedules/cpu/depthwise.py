"""Depthwise convolution and its gradients: register tiles of a few pixels by one vector of channels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..decisions import Choices
from ..extents import divisors
from ..loops import extent_of, extents_of, split_by_kind
from .tile import (
    block_by_block,
    choose_tile,
    decided_tile,
    epilogue_of,
    inline_elementwise,
    register_tile,
    rows_in_cache,
    split_phases,
    split_tile,
    vectorize_inner,
)
from .tile_cost import Tile, vector_lanes
from .traits import CpuTraits


def depthwise(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``Y[n, h, w, c] = sum_{r, s} X[n, .., c] * W[r, s, c]`` with the taps unrolled.

    Adjacent pixels of a tile share input loads.
    """
    spatial, reduced = split_by_kind(sch, block)
    *rows, column = spatial
    _tile(sch, block, _Loops(rows, column, reduced), traits, choices)


def quantized(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``Y[n, h, w, c] = sum_{r, m} dot(X[n, .., c], W[r, w % phases, m, c])``, words of taps, unrolled.

    Results above each other, and both phases, share a word, which is joined in registers.
    """
    (words,) = sch.get_producers(block)
    sch.compute_inline(words)
    spatial, reduced = split_by_kind(sch, block)
    *rows, column = spatial
    phases = int(sch.get(block).reads[1].source.ty.shape[1])
    offered = _tiles_of_words(extents_of(sch, rows), extent_of(sch, column), phases, traits)
    tile = decided_tile(choices, offered)
    columns_first = choices.choose("columns_first", (False, True), False)
    register_tile(
        sch,
        block,
        tile,
        rows,
        column,
        reduced,
        traits,
        choices,
        columns_first=columns_first,
        unroll_reduced=2,
        parallel=2,
    )


def data_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``dX[n, h, w, c] = sum_{r, s} dY[n, .., c] * W[r, s, c]``, one stride phase at a time."""
    spatial, reduced = split_by_kind(sch, block)
    rows, phases = split_phases(sch, block, spatial[:-1])
    _tile(sch, block, _Loops(rows, spatial[-1], reduced, phases), traits, choices)


def weight_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``dW[.., r, s, 0, c] = sum X[n, .., c] * dY[n, h, w, c]``.

    On a core with vectors, pixel by pixel (:func:`_pixel_by_pixel`). Else in tiles of taps, each with all of dY. In
    parts of a large X, a tile then has one row of taps: the first cache holds the rows that it reads.
    """
    spatial, reduced = split_by_kind(sch, block)
    *parts, r, s, one, column = spatial
    if _is_by_channel(sch, block, column, traits) and _is_cached(sch, block, traits):
        _pixel_by_pixel(sch, block, traits, parts, [r, s, one], column, reduced, choices)
        return
    tile = choose_tile(sch, [r, s, one], column, traits, choices, by_row=bool(parts))
    if parts:
        most = rows_in_cache(sch, block, traits)
        block_by_block(sch, block, tile, [r, s, one], column, reduced, choices, tasks=parts, most=most)
    else:
        register_tile(sch, block, tile, [r, s, one], column, reduced, traits, choices)


def _is_by_channel(sch: s_tir.Schedule, block: SBlockRV, column: LoopRV, traits: CpuTraits) -> bool:
    """Return whether vectors of channels read vectors of as many, of an input that is padded at most: a window of it
    can be padded in registers."""
    padding = sch.get_producers(block)
    is_alone = len(padding) <= 1 and not any(sch.get_producers(each) for each in padding)
    return is_alone and traits.lanes > 1 and _image(sch, block)[-1] == extent_of(sch, column)


def _is_cached(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits) -> bool:
    """Return whether the image that a block reads may still be in a cache. If not, padded rows are faster than windows,
    since the processor fetches ahead for their copies: 1.1 times for 14 MB on Zen 5."""
    size = 4 * math.prod(int(extent) for extent in sch.get(block).reads[0].source.ty.shape)
    return size <= traits.cached_bytes


@dataclass(frozen=True)
class _Loops:
    """Loops of a convolution or of its data gradient."""

    rows: Sequence[LoopRV]
    """Images, and the rows and columns of their pixels."""
    column: LoopRV
    """Channels."""
    reduced: Sequence[LoopRV]
    """Taps."""
    phases: Sequence[LoopRV] = ()
    """Rows and columns within a stride, of a data gradient."""


def _steps(sch: s_tir.Schedule, block: SBlockRV, loops: _Loops) -> list[int]:
    """Return the rows and columns of the image from one result to the next."""
    taps, counts = extents_of(sch, loops.reduced[:2]), extents_of(sch, loops.rows)[1:]
    sizes = zip(_image(sch, block)[:2], taps, counts, strict=True)
    return [max(1, (extent - taps) // max(1, count - 1)) for extent, taps, count in sizes]


def _image(sch: s_tir.Schedule, block: SBlockRV) -> list[int]:
    """Return the extents of the image that a block reads: rows, columns and channels."""
    _, *image = (int(extent) for extent in sch.get(block).reads[0].source.ty.shape)
    return image


def _tile(sch: s_tir.Schedule, block: SBlockRV, loops: _Loops, traits: CpuTraits, choices: Choices) -> None:
    is_cached = _is_cached(sch, block, traits) or (not loops.phases and max(_steps(sch, block, loops)) > 1)
    if _is_by_channel(sch, block, loops.column, traits) and is_cached:
        _window_by_window(sch, block, loops, traits, choices)
        return
    tile = decided_tile(choices, _tiles(extents_of(sch, loops.rows), extent_of(sch, loops.column), traits))
    padding = sch.get_producers(block)
    columns_first = choices.choose("columns_first", (False,) if loops.phases else (False, True), False)
    register_tile(
        sch,
        block,
        tile,
        loops.rows,
        loops.column,
        loops.reduced,
        traits,
        choices,
        phases=loops.phases,
        columns_first=columns_first,
        unroll_reduced=2,
        parallel=2 if loops.phases or padding else None,
    )


def _window_by_window(sch: s_tir.Schedule, block: SBlockRV, loops: _Loops, traits: CpuTraits, choices: Choices) -> None:
    """Schedule results as tiles of few pixels that go through their channels, vector by vector.

    Loops, outermost first: tiles of rows, the first ``parallel`` of them parallel; channel vectors; ``phases``, taps
    and the tile, all unrolled. A vector pads its window of the input in registers, so that no padded copy is written,
    and all memory is gone through in a few runs of adjacent lines. From measurements on Zen 5, MobileNetV2 at batch 1:
    1.1 to 2.8 times as fast as tall tiles of padded rows, with strides up to 3 times.
    """
    tile = decided_tile(choices, _tiles_of_windows(sch, block, loops, traits))
    row_outer, column_outer, inside = split_tile(sch, tile, loops.rows, loops.column)
    grid = [*row_outer, column_outer]
    parallel = choices.choose("parallel", range(1, len(grid)), len(row_outer))
    padding = sch.get_producers(block)
    sch.reorder(*grid, *loops.phases, *loops.reduced, *inside)
    epilogue = epilogue_of(sch, block)
    sch.reverse_compute_at(epilogue, column_outer)
    for padded in padding:
        sch.set_scope(padded, 0, "local")
        sch.compute_at(padded, column_outer)
    for each in (epilogue, *padding):
        for loop in sch.get_loops(each)[len(grid) : -1]:
            sch.unroll(loop)
        vectorize_inner(sch, each, tile.lanes)
    sch.parallel(sch.fuse(*grid[:parallel]))
    sch.vectorize(inside[-1])
    for loop in (*loops.phases, *inside[:-1], *loops.reduced):
        sch.unroll(loop)
    sch.decompose_reduction(block, loops.reduced[0])


def _pixel_by_pixel(
    sch: s_tir.Schedule,
    block: SBlockRV,
    traits: CpuTraits,
    parts: list[LoopRV],
    taps: list[LoopRV],
    column: LoopRV,
    reduced: list[LoopRV],
    choices: Choices,
) -> None:
    """Schedule a weight gradient whose sums stay in the first cache while a task goes through the pixels.

    Loops, outermost first: ``parts`` and groups of channels, parallel; images, rows, a few adjacent pixels; channel
    vectors; pixels and taps, unrolled. A vector pads its window of X in registers, adds its products to the sums of all
    taps, and is done with these pixels: memory is gone through once, in runs of adjacent lines. Each task has sums of
    its own, which it copies: beside those of another core, lines would move between the cores. From measurements on
    Zen 5, MobileNetV2 at batch 1, X and dY in the third cache: 1.4 to 3 times as fast as tiles of taps.

    Decisions: ``pixels``, ``groups``.
    """
    image, row, pixel = reduced
    lanes = vector_lanes(extent_of(sch, column), traits.lanes)
    offered = [n for n in divisors(extent_of(sch, pixel)) if n <= MOST_PIXELS]
    pixels = choices.choose("pixels", offered, offered[-1])
    counts = divisors(extent_of(sch, column) // lanes)
    wanted = 1 if parts else TASKS_OF_CORE * traits.cores
    groups = choices.choose("groups", counts, next((n for n in counts if n >= wanted), counts[-1]))
    padding = sch.get_producers(block)
    epilogue = inline_elementwise(sch, block) or sch.cache_write(block, 0, "global")
    group, vector, lane = sch.split(column, [groups, None, lanes])
    outer, inner = sch.split(pixel, [None, pixels])
    loops = [*parts, group, image, row, outer, vector]
    sch.reorder(*loops, inner, *taps, lane)
    sch.reverse_compute_at(epilogue, group)
    vectorize_inner(sch, epilogue, lanes)
    for padded in padding:
        sch.set_scope(padded, 0, "local")
        sch.compute_at(padded, vector)
        for loop in sch.get_loops(padded)[len(loops) : -1]:
            sch.unroll(loop)
        vectorize_inner(sch, padded, lanes)
    sch.parallel(sch.fuse(*parts, group))
    sch.vectorize(lane)
    for loop in (inner, *taps):
        sch.unroll(loop)
    sch.decompose_reduction(block, image)


MOST_PIXELS = 8
"""Most pixels of a tile that goes through channels, and of a phase."""
TASKS_OF_CORE = 2
"""Groups of channels for each core, where only they are parallel."""


def _tiles_of_windows(sch: s_tir.Schedule, block: SBlockRV, loops: _Loops, traits: CpuTraits) -> list[Tile]:
    """Return tiles of one channel vector, those first that take the least time for a result.

    A tile takes its multiply-adds, or the loads of its window, of the weights and of what did not fit the registers.
    Among tiles that take as long, small ones come first, which write to fewer places at once.
    """
    _, *counts = extents_of(sch, loops.rows)
    taps = extents_of(sch, loops.reduced[:2])
    lanes = vector_lanes(extent_of(sch, loops.column), traits.lanes)
    *image, _ = _image(sch, block)
    steps = _steps(sch, block, loops)
    reach = [extent - (count - 1) * step for extent, count, step in zip(image, counts, steps, strict=True)]

    def cost(tile: Tile) -> tuple[float, int, int, int]:
        _, *sizes = tile.rows
        window = math.prod((size - 1) * step + first for size, step, first in zip(sizes, steps, reach, strict=True))
        results = tile.height * math.prod(extents_of(sch, loops.phases))
        spilled = max(0, window + results + 1 - traits.registers)
        loads = window + math.prod(taps) + 2 * spilled
        products = tile.height * math.prod(taps)
        time = max(products / traits.fma_ports, loads / traits.load_ports) / results
        return time, tile.height, window, -tile.rows[1]

    sizes = itertools.product(*map(divisors, counts))
    offered = [Tile((1, high, wide), lanes, 1) for high, wide in sizes if high * wide <= MOST_PIXELS]
    return sorted(offered, key=cost)


def _tiles(rows: list[int], columns: int, traits: CpuTraits) -> list[Tile]:
    """Return tiles of one channel vector, most pixels first, and tall before wide: they read more rows at a time.

    Results get a quarter of the registers: unlike in a matrix product, weights and inputs are vectors too. A core
    without vectors is a microcontroller's, with little memory: there wide tiles come first, which pad fewer rows.
    """
    _, height, width = rows
    lanes = vector_lanes(columns, traits.lanes)
    sizes = itertools.product(divisors(height), divisors(width))
    fitting = [(high, wide) for high, wide in sizes if high * wide <= traits.registers // 4]
    first = 1 if traits.lanes == 1 else -1
    fitting.sort(key=lambda size: (-math.prod(size), first * size[0]))
    return [Tile((1, high, wide), lanes, 1) for high, wide in fitting]


def _tiles_of_words(rows: list[int], columns: int, phases: int, traits: CpuTraits) -> list[Tile]:
    """Return tiles of results that read words: all phases, most vectors that are stored at once first, then most
    pixels, tall before wide."""
    _, height, width = rows
    lanes = vector_lanes(columns, traits.lanes)
    found = [
        Tile((1, high, wide), lanes, vectors)
        for vectors in divisors(columns // lanes)
        for high in divisors(height)
        for wide in divisors(width)
        if wide % phases == 0 and vectors <= 4 and vectors * high * wide <= traits.registers // 2
    ]
    return sorted(found, key=lambda tile: (-tile.height * tile.vectors, -tile.rows[1]))
