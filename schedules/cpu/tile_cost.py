"""Register tiles: their extents, and what they cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
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
    breaks: bool = False,
) -> list[Tile]:
    """Return register tiles that cover ``rows`` x ``columns`` results without a tail, lowest estimated cost first.

    A tile of t rows and v vectors does t + v loads for t * v multiply-adds, and needs enough of them in flight to hide
    their latency. Its v vectors may come from the L2 cache: the lower the tile, the more often. ``from_memory``: they
    come there from beyond it. Operands take v + 1 registers, which bounds the number of tiles: about 20, 66 at most
    seen. ``joins``: a vector may take several registers (:func:`joined_lanes`).
    ``breaks``: where all other tiles wait for loads or latency, a tile may have parts of several row loops: blocks of
    pixels.
    """
    lanes = (joined_lanes if joins else vector_lanes)(columns, traits.lanes)
    joined = len(vector_sizes(lanes, traits.lanes))
    found: list[Tile] = []
    broken: list[Tile] = []
    for vectors in divisors(columns // lanes):
        for split in itertools.product(*(divisors(extent) for extent in rows)):
            if (math.prod(split) + 1) * vectors * joined + 1 <= traits.registers:
                (found if _innermost_first(split, rows) else broken).append(Tile(split, lanes, vectors))
    if breaks and all(_waits(tile, traits) for tile in found):
        found += broken
    return sorted(found, key=lambda tile: _cost(tile, parts * math.prod(rows) * columns, traits, from_memory))


def _innermost_first(split: Sequence[int], rows: Sequence[int]) -> bool:
    """Return whether a tile has part of a loop over rows only where it has all of the loops inside."""
    return all(part == 1 or whole == inner for part, whole, inner in zip(split, rows[1:], split[1:], strict=False))


def _waits(tile: Tile, traits: CpuTraits) -> bool:
    """Return whether latency or loads keep a tile below the peak."""
    vectors = tile.registers(traits)
    size = tile.height * vectors
    loads = (tile.height + vectors) / size * traits.fma_ports / traits.load_ports
    return size < _in_flight(traits) or loads > MOST_LOADS


MOST_LOADS = 1.07
"""Most loads of a tile, relative to those that start beside its multiply-adds. From measurements on Zen 5: tiles of one
vector and 16 or 28 rows lose nothing to wider ones for which columns are added, or blocks of rows broken."""


def _in_flight(traits: CpuTraits) -> int:
    return max(LEAST_IN_FLIGHT, traits.fma_ports * traits.fma_latency)


def _cost(tile: Tile, results: int, traits: CpuTraits, from_memory: bool = False) -> float:
    """Estimate the time per multiply-add, relative to peak throughput."""
    vectors = tile.registers(traits)
    size = tile.height * vectors
    loads = (tile.height + vectors) / size
    latency = max(1.0, _in_flight(traits) / size)
    count = results // (tile.height * tile.width)
    balance = math.ceil(count / traits.cores) * traits.cores / count
    exposed = max(0.0, stream_of(tile, traits) - (HIDDEN_FROM_MEMORY if from_memory else HIDDEN_STREAM))
    spread = traits.broadcast_cost / vectors
    spills = SPILLING if _is_tight(tile, traits) else 1.0
    return balance * latency * spills * (1 + 0.5 * loads * traits.fma_ports / traits.load_ports + exposed + spread)


def _is_tight(tile: Tile, traits: CpuTraits) -> bool:
    """Return whether a tile takes all registers, and has few uses for each operand that it loads."""
    vectors = tile.registers(traits)
    return (tile.height + 1) * vectors + 1 == traits.registers and min(tile.height, vectors) < FEWEST_USES


SPILLING, FEWEST_USES = 1.25, 3
"""Time that a tile which takes all registers loses, unless each operand is used so often: where LLVM unrolls the loop
over terms, it loads operands early, and sums go to memory. By `llvm-mca` for 14 x 1 and 2 x 5 vectors of AVX2: from
none (Haswell) to twice the time (Zen 3)."""


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
    most = min(MOST_SPARE_ROWS, int(MOST_SPARE * rows))
    return _rounded(rows, range(rows, rows + most + 1), lambda count: _time(count, columns, traits))


def rounded_columns(rows: int, columns: int, traits: CpuTraits) -> int:
    """Return ``columns``, whole vectors, or slightly more of them for a much better tile: 125 vectors are five times
    25, 126 are three times 42."""
    if not _waits(tiles([rounded_rows(rows, columns, traits)], columns, traits)[0], traits):
        return columns
    most = int(MOST_SPARE * columns) // traits.lanes * traits.lanes
    candidates = range(columns, columns + most + 1, traits.lanes)
    return _rounded(columns, candidates, lambda count: _time(rounded_rows(rows, count, traits), count, traits))


def _time(rows: int, columns: int, traits: CpuTraits) -> float:
    """Estimate the time of a product on cores that all have work, by its best tile, relative to other sizes."""
    best = tiles([rows], columns, traits)[0]
    return _cost(best, best.height * best.width * traits.cores, traits) * rows * columns


def _rounded(extent: int, candidates: Iterable[int], time: Callable[[int], float]) -> int:
    """Return the candidate of the least time, if that is much less than of ``extent`` itself."""
    best = min(candidates, key=time)
    return best if time(best) < WORTH * time(extent) else extent


MOST_SPARE, MOST_SPARE_ROWS = 1 / 7, 7
"""Most rows or columns to compute in vain, relative to those wanted, and most rows."""
WORTH = 0.9
"""Estimated time, relative to that without, for which they are computed."""
