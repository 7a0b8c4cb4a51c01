"""How to cut a long sum into parts that run in parallel."""

from __future__ import annotations

import math
from collections.abc import Sequence


def parts(extents: Sequence[int], want: int) -> tuple[int, ...]:
    """In how many equal parts to cut each axis so that there are at least ``want`` of them together, where possible.

    The first axis is cut first: a part is then contiguous in memory.
    """
    counts = []
    for extent in extents:
        count = next((n for n in range(1, extent + 1) if extent % n == 0 and n >= want), extent)
        counts.append(count)
        want = math.ceil(want / count)
    return tuple(counts)
