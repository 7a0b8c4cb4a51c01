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
    RANK_OF_IMAGES,
    block_by_block,
    choose_tile,
    decided_tile,
    is_balanced,
    register_tile,
    rows_in_cache,
    split_phases,
)
from .tile_cost import Tile, vector_lanes
from .traits import CpuTraits


def depthwise(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``Y[n, h, w, c] = sum_{r, s} X[n, .., c] * W[r, s, c]`` with the taps unrolled.

    Adjacent pixels of a tile share input loads.
    """
    spatial, reduced = split_by_kind(sch, block)
    *rows, column = spatial
    _tile(sch, block, traits, rows, column, reduced, [], choices)


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
    _tile(sch, block, traits, rows, spatial[-1], reduced, phases, choices)


def weight_gradient(sch: s_tir.Schedule, block: SBlockRV, traits: CpuTraits, choices: Choices) -> None:
    """Schedule ``dW[.., r, s, 0, c] = sum X[n, .., c] * dY[n, h, w, c]`` in tiles of taps by channel vectors.

    In parts of a large X, a tile has one row of taps: the first cache then holds the rows that it reads. From
    measurements at batch 8: 1.03 to 1.43 times as fast as all taps at once.
    """
    spatial, reduced = split_by_kind(sch, block)
    *parts, r, s, one, column = spatial
    tile = choose_tile(sch, [r, s, one], column, traits, choices, by_row=bool(parts))
    if parts:
        most = rows_in_cache(sch, block, traits)
        block_by_block(sch, block, tile, [r, s, one], column, reduced, choices, tasks=parts, most=most)
    else:
        register_tile(sch, block, tile, [r, s, one], column, reduced, traits, choices)


def _tile(
    sch: s_tir.Schedule,
    block: SBlockRV,
    traits: CpuTraits,
    rows: list[LoopRV],
    column: LoopRV,
    reduced: list[LoopRV],
    phases: list[LoopRV],
    choices: Choices,
) -> None:
    tiles = _tiles(extents_of(sch, rows), extent_of(sch, column), traits)
    padding = sch.get_producers(block)
    parallel, columns_first = 2 if phases or padding else None, False
    windows = _Windows.of(sch, padding[0], rows, reduced) if padding and not phases else None
    if windows is not None and _pads_windows(windows, tiles[0], math.prod(extents_of(sch, rows[:2])), traits):
        tiles, parallel = windows.smallest_first(tiles, traits), None
        columns_first = windows.bytes_of(tiles[0]) > traits.cache_bytes // WINDOW_SHARE
    tile = decided_tile(choices, tiles)
    columns_first = choices.choose("columns_first", (False,) if phases else (False, True), columns_first)
    register_tile(
        sch,
        block,
        tile,
        rows,
        column,
        reduced,
        traits,
        choices,
        phases=phases,
        columns_first=columns_first,
        unroll_reduced=2,
        parallel=parallel,
    )


ROWS_SHARE, WINDOW_SHARE = 8, 64
"""Shares of the L2 cache. Less than the first in padded rows is padded in no time. If the windows of all channels of a
tile take more than the second, half of the first cache, those of neighbours follow each other: they overlap. From
measurements on x86."""


def _pads_windows(windows: _Windows, tile: Tile, rows: int, traits: CpuTraits) -> bool:
    """Return whether each tile best pads its own window, and not a task the rows of its tiles.

    With strides, several inputs are copied for a result, and each is read less often. Without, padded rows are better,
    unless there are too few rows of tiles for the cores. A core without vectors is left out: it was not measured.
    """
    is_large = traits.lanes > 1 and windows.bytes_of_row(tile) > traits.cache_bytes // ROWS_SHARE
    return is_large and (windows.strides != (1, 1) or not is_balanced(rows // tile.rows[1], traits))


@dataclass(frozen=True)
class _Windows:
    """Parts of a padded input that results read."""

    taps: tuple[int, int]
    strides: tuple[int, int]
    width: int
    """Columns of the padded input."""
    channels: int

    @classmethod
    def of(
        cls, sch: s_tir.Schedule, padding: SBlockRV, rows: Sequence[LoopRV], reduced: Sequence[LoopRV]
    ) -> _Windows | None:
        """Return the windows of the input that a block pads; None if it makes something else."""
        shape = [int(extent) for extent in sch.get(padding).writes[0].source.ty.shape]
        if len(shape) != RANK_OF_IMAGES:
            return None
        _, height, width, channels = shape
        r, s = extents_of(sch, reduced[:2])
        _, *results = extents_of(sch, rows)
        high, wide = (
            (extent - taps) // max(1, count - 1)
            for extent, taps, count in zip((height, width), (r, s), results, strict=True)
        )
        return cls((r, s), (high, wide), width, channels)

    def bytes_of(self, tile: Tile) -> int:
        """Return the bytes of a tile's window, with all channels."""
        return 4 * math.prod(self._of(tile)) * self.channels

    def bytes_of_row(self, tile: Tile) -> int:
        """Return the bytes of the padded rows that a row of tiles reads, with all channels."""
        return 4 * self._of(tile)[0] * self.width * self.channels

    def smallest_first(self, tiles: Sequence[Tile], traits: CpuTraits) -> list[Tile]:
        """Sort tiles: those first whose window fits half of the registers, since LLVM then pads it there. Among them,
        and among the others, those of most pixels come first, then those with the smallest window. A pixel alone waits
        for its own sum, and counts as one of the others."""

        def cost(tile: Tile) -> tuple[bool, int, int]:
            window = math.prod(self._of(tile))
            return tile.height == 1 or window >= traits.registers // 2, -tile.height, window

        return sorted(tiles, key=cost)

    def _of(self, tile: Tile) -> tuple[int, int]:
        """Return the rows and columns of a tile's window."""
        _, *sizes = tile.rows
        high, wide = (
            (size - 1) * stride + taps for size, stride, taps in zip(sizes, self.strides, self.taps, strict=True)
        )
        return high, wide


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
