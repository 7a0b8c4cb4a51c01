"""Whether a product best copies its second operand, B, strip by strip."""

from __future__ import annotations

import math

from .tile import is_balanced
from .tile_cost import Tile, stream_of
from .traits import CpuTraits

PACKED_ROWS = {True: 224, False: 512}
"""Fewest result rows for which packing a strip of B pays on a core that is not wide, by whether the rows of B begin in
few sets of a cache: those of a multiple of :data:`SHARED_SETS` bytes do. From measurements with weights that are in no
cache, as in a training step: of 768 columns, packing is 0.97 times as fast for 256 rows, and 1.03 times for 1024."""
SHARED_SETS = 2048
"""Bytes between rows that share an eighth of the sets of a cache with 1024 or 2048, or fewer."""
WIDE = 32
"""Fewest numbers that a wide core multiplies and adds in a cycle: two vectors of AVX-512."""
PACKED_ROWS_OF_WIDE = {True: 32, False: 112}
"""The same for wide cores, by whether all rows of B begin in one set of a first cache. From measurements on Zen 5,
weights in no cache: for 49 rows, packing 4 MB of 2048 columns is 1.3 times as fast, of 512 0.9 to 1.0 times; for 128
rows of 768 columns 1.1 times."""
UNPACKED_STREAM = 0.4
"""Share of what the L2 cache delivers from which wide cores do not read an unpacked strip of B. From measurements on
Zen 5: packing strips for tiles of 4 rows is 1.1 to 1.4 times as fast, and 0.95 to 1.0 times for tiles of 14."""
WAY, WAYS = 4096, 16
"""Bytes of a way of a first cache, within which each line has a set of its own, and twice the fewest ways that one has:
most of a strip that is little larger stays there."""


def is_wide(traits: CpuTraits) -> bool:
    """Return whether a core multiplies so many numbers a cycle that it waits for what is not packed."""
    return traits.fma_ports * traits.lanes >= WIDE


def packing_pays(height: int, terms: int, columns: int, tile: Tile, strips: int, traits: CpuTraits) -> bool:
    """Return whether each of ``strips`` tasks best copies its strip of B, [terms, columns], for ``height`` rows."""
    if columns == tile.width or not is_balanced(strips, traits):
        return False
    are_many = height >= PACKED_ROWS[4 * columns % SHARED_SETS == 0]
    is_large = 4 * terms * columns > traits.cache_bytes // 2
    if not is_wide(traits) or (are_many and is_large):
        return are_many
    places, size = WAY // math.gcd(4 * columns, WAY), 4 * terms * tile.width
    if not WAYS * min(WAY, 4 * places * tile.width) <= size <= traits.cache_bytes // 2:
        return False
    if 4 * terms * columns <= traits.cache_bytes and stream_of(tile, traits) < UNPACKED_STREAM:
        return False
    return height >= PACKED_ROWS_OF_WIDE[places == 1]
