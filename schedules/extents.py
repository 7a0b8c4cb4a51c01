"""Arithmetic of loop extents."""

from __future__ import annotations

import math
from collections.abc import Sequence


def divisors(extent: int) -> list[int]:
    """Return the divisors of an extent, smallest first."""
    low = [n for n in range(1, math.isqrt(extent) + 1) if extent % n == 0]
    return [*low, *(extent // n for n in reversed(low) if n * n != extent)]


def parts(extents: Sequence[int], want: int) -> tuple[int, ...]:
    """Split the axes of a long reduction into at least ``want`` equal chunks in total, where possible.

    Returns the number of chunks of each axis. The first axis is split first: its chunks are contiguous in memory.
    """
    counts = []
    for extent in extents:
        count = next((n for n in divisors(extent) if n >= want), extent)
        counts.append(count)
        want = math.ceil(want / count)
    return tuple(counts)
