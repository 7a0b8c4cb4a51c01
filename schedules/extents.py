"""Arithmetic of loop extents."""

from __future__ import annotations

import math
from collections.abc import Sequence


def divisors(extent: int) -> list[int]:
    """Divisors of an extent, smallest first."""
    return [n for n in range(1, extent + 1) if extent % n == 0]


def parts(extents: Sequence[int], want: int) -> tuple[int, ...]:
    """Equal parts to cut each axis of a long sum into, so that there are at least ``want`` together, where possible.

    The first axis is cut first: a part is then contiguous in memory.
    """
    counts = []
    for extent in extents:
        count = next((n for n in divisors(extent) if n >= want), extent)
        counts.append(count)
        want = math.ceil(want / count)
    return tuple(counts)
