"""Register tiles: their extents, and what they cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..extents import divisors
from .traits import CpuTraits


@dataclass(frozen=True)
class Tile:
    """Extents of a register tile: results along each row loop, and columns as vectors of lanes."""

    rows: tuple[int, ...]
    lanes: int
    vectors: int

    def registers(self, traits: CpuTraits) -> int:
        """Return the vector registers that a row of the tile takes."""
        return self.vectors * len(vector_sizes(self.lanes, traits.lanes))

    @property
    def height(self) -> int:
        """Rows in the tile."""
        return math.prod(self.rows)

    @property
    def width(self) -> int:
        """Columns in the tile."""
        return self.lanes * self.vectors


def vector_lanes(columns: int, most: int) -> int:
    """Return the lanes of a vector along ``columns`` results: a divisor, at most ``most``, powers of two first."""
    lanes = most
    while lanes > 4 and columns % lanes:
        lanes //= 2
    if columns % lanes == 0:
        return lanes
    return max(n for n in range(1, most + 1) if columns % n == 0)


def joined_lanes(columns: int, most: int) -> int:
    """Return the lanes of a vector of floats that may take several registers, of ``most`` lanes each.

    It is as :func:`vector_lanes` has it unless all columns take fewer instructions: 24 are a vector of 16 and one of 8
    lanes, and not three of 8. From measurements on Zen 5: 1.3 to 1.45 times as fast for 24 and 40 columns. Where a row
    takes several such vectors, they cross lines of the cache: 120 columns by 40 lanes are 0.9 times as fast as by 8.
    """
    lanes = vector_lanes(columns, most)
    apart, joined = columns // lanes * len(vector_sizes(lanes, most)), len(vector_sizes(columns, most))
    return columns if columns % 2 == 0 and columns <= MOST_JOINED * most and joined < apart else lanes


MOST_JOINED = 4
"""Most registers that a vector fills."""


def vector_sizes(lanes: int, most: int) -> list[int]:
    """Return the lanes of the registers that hold a vector: as many of ``most`` as it fills, and powers of two. Odd
    lanes stay together: one by itself would be no vector."""
    if lanes % 2:
        return [lanes]
    whole, rest = divmod(lanes, most)
    return [most] * whole + [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]


def tiles(
    rows: Sequence[int],
    columns: int,
    traits: CpuTraits,
    parts: int = 1,
    *,
    from_memory: bool = False,
    joins: bool = False,
) -> list[Tile]:
    """Return register tiles that cover ``rows`` x ``columns`` results without a tail, lowest estimated cost first.

    A tile of t rows and v vectors does t + v loads for t * v multiply-adds, and needs enough of them in flight to hide
    their latency. Its v vectors may come from the L2 cache: the lower the tile, the more often. ``from_memory``: they
    come there from beyond it. Operands take v + 1 registers, which bounds the number of tiles: about 20, 66 at most
    seen. ``joins``: a vector may take several registers (:func:`joined_lanes`).
    """
    lanes = (joined_lanes if joins else vector_lanes)(columns, traits.lanes)
    joined = len(vector_sizes(lanes, traits.lanes))
    found = []
    for vectors in divisors(columns // lanes):
        for split in itertools.product(*(divisors(extent) for extent in rows)):
            height = math.prod(split)
            innermost_first = all(
                part == 1 or whole == inner for part, whole, inner in zip(split, rows[1:], split[1:], strict=False)
            )
            if innermost_first and (height + 1) * vectors * joined + 1 <= traits.registers:
                found.append(Tile(split, lanes, vectors))
    return sorted(found, key=lambda tile: _cost(tile, parts * math.prod(rows) * columns, traits, from_memory))


def _cost(tile: Tile, results: int, traits: CpuTraits, from_memory: bool = False) -> float:
    """Estimate the time per multiply-add, relative to peak throughput."""
    vectors = tile.registers(traits)
    size = tile.height * vectors
    loads = (tile.height + vectors) / size
    in_flight = max(LEAST_IN_FLIGHT, traits.fma_ports * traits.fma_latency)
    latency = max(1.0, in_flight / size)
    count = results // (tile.height * tile.width)
    balance = math.ceil(count / traits.cores) * traits.cores / count
    exposed = max(0.0, stream_of(tile, traits) - (HIDDEN_FROM_MEMORY if from_memory else HIDDEN_STREAM))
    spread = traits.broadcast_cost / vectors
    return balance * latency * (1 + 0.5 * loads * traits.fma_ports / traits.load_ports + exposed + spread)


def stream_of(tile: Tile, traits: CpuTraits) -> float:
    """Return the share of what the L2 cache delivers that a tile at full speed reads of the second operand."""
    return 4 * tile.lanes * traits.fma_ports / (tile.height * traits.cache_stream)


HIDDEN_STREAM = 0.5
"""Time in which a strip of the second operand comes from the L2 cache, relative to the multiply-adds that hide it. From
measurements on x86: tiles of 4 rows reach 0.85 of the peak with twice that time, and all of it with this time."""
HIDDEN_FROM_MEMORY = 0.45
"""The same where the second operand is larger than that cache: tiles of 8 x 48 are 1.03 to 1.13 times as fast there as
of 4 x 96."""


LEAST_IN_FLIGHT = 10
"""Fewest independent multiply-adds of a tile that keep a core busy, whatever its latency: the loop's own instructions
take their turn, too. From measurements on x86."""


def rounded_rows(rows: int, columns: int, traits: CpuTraits) -> int:
    """Return ``rows``, or slightly more for a much better tile: 197 is prime, 198 is 33 times 6."""

    def cost(count: int) -> float:
        best = tiles([count], columns, traits)[0]
        return _cost(best, count * columns, traits) * count

    candidates = range(rows, rows + MOST_SPARE_ROWS + 1)
    best = min(candidates, key=cost)
    return best if rows > MOST_SPARE_ROWS**2 and cost(best) < 0.9 * cost(rows) else rows


MOST_SPARE_ROWS = 7
