"""Places temporaries in an arena, so that no overlapping live ranges share bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax

from ..analysis.live_ranges import LiveRange, live_ranges


@dataclass(frozen=True)
class Plan:
    """Offset of each temporary in the arena."""

    ranges: tuple[LiveRange, ...]
    offsets: tuple[int, ...]
    size: int
    """Arena size in bytes."""


Overlaps = Sequence[Sequence[int]]
"""For each live range, the indices of those that overlap it, itself included."""
CHANGES = 30
"""Number of reorderings tried."""
CLOSE = 1.01
"""Arena size relative to the lower bound at which the search stops."""
MOVES, LARGEST, FRONT = 100, 24, 6
"""Moves tried, largest temporaries considered for each, and positions at the front."""
ORDERS: tuple[Callable[[LiveRange], tuple[int, ...]], ...] = (
    lambda live: (-live.size, live.first),
    lambda live: (-live.size * (live.last - live.first + 1), live.first),
    lambda live: (live.first - live.last, -live.size),
    lambda live: (live.first, -live.size),
)


def lower_bound(ranges: Sequence[LiveRange]) -> int:
    """Return the peak sum of live temporaries in bytes. No plan for this order can be smaller."""
    change: dict[int, int] = {}
    for live in ranges:
        change[live.first] = change.get(live.first, 0) + live.size
        change[live.last + 1] = change.get(live.last + 1, 0) - live.size
    used = peak = 0
    for step in sorted(change):
        used += change[step]
        peak = max(peak, used)
    return peak


def place(ranges: Sequence[LiveRange], moves: int = MOVES) -> Plan:
    """Return the smallest of several plans, or the first that reaches the lower bound.

    Each plan places temporaries greedily in a different order: by size, by size times lifetime, by lifetime, or by
    first use. Then the best order is changed repeatedly: temporaries at the top of the arena go first. (Joslin and
    Clements, Squeaky Wheel Optimization, 1999.) If the plan is still more than :data:`CLOSE` above the bound, up to
    ``moves`` random moves are tried: a large temporary that overlaps one at the top goes to the front, and stays there
    unless the arena grows.
    """
    bound, everything, overlapping = lower_bound(ranges), range(len(ranges)), _overlaps(ranges)
    tried: list[tuple[Plan, list[int]]] = []
    for key in ORDERS:
        order = sorted(everything, key=lambda index: key(ranges[index]))  # noqa: B023
        tried.append((_planned(ranges, overlapping, order), order))
        if tried[-1][0].size == bound:
            return tried[-1][0]
    best, order = min(tried, key=lambda found: found[0].size)
    plan, best_order = best, order
    for _ in range(CHANGES):
        ends = _ends(plan)
        order = sorted(order, key=lambda index: ends[index] < plan.size)  # noqa: B023
        plan = _planned(ranges, overlapping, order)
        if plan.size < best.size:
            best, best_order = plan, order
        if plan.size == bound:
            break
    return _moved(best, overlapping, best_order, moves, CLOSE * bound)


def arena_estimate(func: relax.Function) -> int:
    """Estimate a function's arena in bytes. The final plan searches longer."""
    return place(live_ranges(func), moves=0).size


def _moved(plan: Plan, overlapping: Overlaps, order: Sequence[int], moves: int, enough: float) -> Plan:
    """Improve a plan by moves to the front, until its size is at most ``enough``."""
    choose, ranges = random.Random(0), plan.ranges
    for _ in range(moves):
        if plan.size <= enough:
            break
        ends = _ends(plan)
        top = choose.choice([index for index, end in enumerate(ends) if end == plan.size])
        moved = choose.choice(sorted(overlapping[top], key=lambda index: -ranges[index].size)[:LARGEST])
        changed = [index for index in order if index != moved]
        changed.insert(choose.randrange(FRONT), moved)
        new = _planned(ranges, overlapping, changed)
        if new.size <= plan.size:
            plan, order = new, changed
    return plan


def _ends(plan: Plan) -> list[int]:
    return [offset + live.size for offset, live in zip(plan.offsets, plan.ranges, strict=True)]


def _overlaps(ranges: Sequence[LiveRange]) -> Overlaps:
    first, last = (np.array([getattr(each, end) for each in ranges], int) for end in ("first", "last"))
    together = (first[:, None] <= last) & (first <= last[:, None])
    return [np.flatnonzero(row).tolist() for row in together]


def _planned(ranges: Sequence[LiveRange], overlapping: Overlaps, order: Sequence[int]) -> Plan:
    """Place temporaries in this order, each in the tightest gap between overlapping ones. Some have a place already."""
    sizes = [live.size for live in ranges]
    offsets = [-1 if live.offset is None else live.offset for live in ranges]
    ends = [offset + size if offset >= 0 else 0 for offset, size in zip(offsets, sizes, strict=True)]
    for index in order:
        if offsets[index] >= 0:
            continue
        size = sizes[index]
        taken = sorted([(offsets[other], ends[other]) for other in overlapping[index] if offsets[other] >= 0])
        best, best_gap, end = -1, -1, 0
        for start, stop in taken:
            gap = start - end
            if gap >= size and (best < 0 or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, stop)
        offsets[index] = end if best < 0 else best
        ends[index] = offsets[index] + size
    return Plan(tuple(ranges), tuple(offsets), max(ends, default=0))
