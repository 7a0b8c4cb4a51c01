"""Where temporaries lie in an arena: two that are in use at the same time, apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax

from ..analysis.live_ranges import LiveRange, live_ranges


@dataclass(frozen=True)
class Plan:
    """Where each temporary lies in the arena."""

    ranges: tuple[LiveRange, ...]
    offsets: tuple[int, ...]
    size: int
    """The size of the arena in bytes."""


Overlaps = Sequence[Sequence[int]]
"""For each live range the numbers of those that overlap it, itself among them."""
CHANGES = 30
"""How often the order of a plan is changed."""
CLOSE = 1.01
"""Times the lower bound: nearer to it nothing is moved any more."""
MOVES, LARGEST, FRONT = 100, 24, 6
"""How many moves are tried, of how many temporaries, and to how many places."""
ORDERS: tuple[Callable[[LiveRange], tuple[int, ...]], ...] = (
    lambda live: (-live.size, live.first),
    lambda live: (-live.size * (live.last - live.first + 1), live.first),
    lambda live: (live.first - live.last, -live.size),
    lambda live: (live.first, -live.size),
)


def lower_bound(ranges: Sequence[LiveRange]) -> int:
    """The largest sum of the sizes of temporaries in use at one step: no plan for this order can be smaller."""
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
    """The smallest of a few plans; the first one that needs no more than the lower bound, if one does.

    Each places temporaries one by one in another order: largest first, largest product of size and time first, longest
    first, or as they come. Then the best order is changed a few times: what reaches the top of the arena comes first.
    (Joslin and Clements, Squeaky Wheel Optimization, 1999.) Where that leaves more than :data:`CLOSE` to the bound,
    large temporaries in use beside what reaches the top are moved to the front, one at a time, as long as that does no
    harm: so many ``moves`` are tried.
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
    """About the bytes of a function's arena: the final plan is made with more care."""
    return place(live_ranges(func), moves=0).size


def _moved(plan: Plan, overlapping: Overlaps, order: Sequence[int], moves: int, enough: float) -> Plan:
    """A plan improved by moves to the front, until its size is ``enough``."""
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
    """A plan that places temporaries in this order, each in the tightest gap between those in use with it."""
    sizes = [live.size for live in ranges]
    offsets, ends = [-1] * len(sizes), [0] * len(sizes)
    for index in order:
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
