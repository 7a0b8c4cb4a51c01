"""Tiles of products on matrix units: what warps compute at once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ..traits import GpuTraits
from .tiles import NEAR, PAD_BYTES

WARP = 32
"""Threads of a warp."""
MATRIX = 8
"""Rows of a matrix that a warp loads, each of ``MATRIX_BYTES``."""
MATRIX_BYTES = 16
SIZES = (16, 32, 64, 128)
"""Rows and columns of a block's tile."""
SHAPES = ((16, 16), (16, 32), (32, 16), (32, 32), (32, 64), (64, 32))
"""Rows and columns of a warp."""
STEP_BYTES = 64
"""Bytes of the terms of a step."""
STAGES = (2, 3, 4)
"""Steps in shared memory."""
MOST_WARPS = 8
"""Warps of a block."""
BYTES = 1024
"""Bytes of a factor that the matrix units of a core multiply in a cycle: 512 elements of 16 bits on sm_86 and sm_87."""


@dataclass(frozen=True)
class WarpTile:
    """Results of a block and terms of a step, results of a warp, and steps in shared memory."""

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int
    stages: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * (self.rows // self.warp_rows) * (self.columns // self.warp_columns)

    @property
    def thread_rows(self) -> int:
        """Rows of a thread: one of every 8."""
        return self.warp_rows // 8

    @property
    def thread_columns(self) -> int:
        """Columns of a thread: two of every 8."""
        return self.warp_columns // 4

    @property
    def registers(self) -> int:
        """Registers of a thread, about: sums, factors and their places."""
        return 40 + self.thread_rows * self.thread_columns + (self.warp_rows + self.warp_columns) // 4

    def shared_bytes(self, widths: tuple[int, int]) -> int:
        """Return the shared memory of a block, in bytes: of the layout of each factor that takes more."""
        return self.stages * sum(
            max(size, self.depth) * PAD_BYTES + size * self.depth * width
            for size, width in zip((self.rows, self.columns), widths, strict=True)
        )

    def cycles(self, widths: tuple[int, int]) -> float:
        """Return the cycles of a core for a step's loads from shared memory, and its multiply-adds."""
        read = self.warp_rows * widths[0] + self.warp_columns * widths[1]
        multiply = self.rows * self.columns * max(widths) / BYTES
        return self.depth * (multiply + self.threads // WARP * read / NEAR)


def warp_tiles(traits: GpuTraits, width: int) -> list[WarpTile]:
    """Return the tiles that a GPU with matrix units can hold. ``width``: bytes of an element of both factors."""
    found = []
    for rows, columns, (high, wide), stages in itertools.product(SIZES, SIZES, SHAPES, STAGES):
        if rows % high or columns % wide:
            continue
        tile = WarpTile(rows, columns, STEP_BYTES // width, high, wide, stages)
        fits = tile.shared_bytes((width, width)) <= traits.shared_bytes
        if fits and 2 * WARP <= tile.threads <= MOST_WARPS * WARP:
            found.append(tile)
    return found
