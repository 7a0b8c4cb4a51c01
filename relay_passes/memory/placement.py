"""Where temporaries lie in an arena: two that are in use at the same time, apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lifetime:
    """A temporary: its size in bytes, and the first and last step at which it is in use."""

    name: str
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Plan:
    """Where each temporary lies in the arena."""

    lifetimes: tuple[Lifetime, ...]
    offsets: tuple[int, ...]
    size: int
    """The size of the arena in bytes."""


Beside = Sequence[Sequence[int]]
"""For each temporary those that are in use at some step of its own, itself among them."""
CHANGES = 30
"""How often the order of a plan is changed."""
CLOSE = 1.01
"""Times the lower bound: nearer to it nothing is moved any more."""
MOVES, LARGEST, FRONT = 100, 24, 6
"""How many moves are tried, of how many temporaries, and to how many places."""
ORDERS: tuple[Callable[[Lifetime], tuple[int, ...]], ...] = (
    lambda lifetime: (-lifetime.size, lifetime.first),
    lambda lifetime: (-lifetime.size * (lifetime.last - lifetime.first + 1), lifetime.first),
    lambda lifetime: (lifetime.first - lifetime.last, -lifetime.size),
    lambda lifetime: (lifetime.first, -lifetime.size),
)


def lower_bound(lifetimes: Sequence[Lifetime]) -> int:
    """The largest sum of the sizes of temporaries in use at one step: no plan for this order can be smaller."""
    change: dict[int, int] = {}
    for lifetime in lifetimes:
        change[lifetime.first] = change.get(lifetime.first, 0) + lifetime.size
        change[lifetime.last + 1] = change.get(lifetime.last + 1, 0) - lifetime.size
    live = peak = 0
    for step in sorted(change):
        live += change[step]
        peak = max(peak, live)
    return peak


def place(lifetimes: Sequence[Lifetime], moves: int = MOVES) -> Plan:
    """The smallest of a few plans; the first one that needs no more than the lower bound, if one does.

    Each places temporaries one by one in another order: largest first, largest product of size and time first, longest
    first, or as they come. Then the best order is changed a few times: what reaches the top of the arena comes first.
    (Joslin and Clements, Squeaky Wheel Optimization, 1999.) Where that leaves more than :data:`CLOSE` to the bound,
    large temporaries that are in use beside what reaches the top are moved to the front, one at a time, as long as that
    does no harm: so many ``moves`` are tried.
    """
    bound, everything, beside = lower_bound(lifetimes), range(len(lifetimes)), _beside(lifetimes)
    tried: list[tuple[Plan, list[int]]] = []
    for key in ORDERS:
        order = sorted(everything, key=lambda index: key(lifetimes[index]))  # noqa: B023
        tried.append((_planned(lifetimes, beside, order), order))
        if tried[-1][0].size == bound:
            return tried[-1][0]
    best, order = min(tried, key=lambda found: found[0].size)
    plan, best_order = best, order
    for _ in range(CHANGES):
        ends = _ends(plan)
        order = sorted(order, key=lambda index: ends[index] < plan.size)  # noqa: B023
        plan = _planned(lifetimes, beside, order)
        if plan.size < best.size:
            best, best_order = plan, order
        if plan.size == bound:
            break
    return _moved(best, beside, best_order, moves, CLOSE * bound)


def _moved(plan: Plan, beside: Beside, order: Sequence[int], moves: int, enough: float) -> Plan:
    """A plan improved by moves to the front, until its size is ``enough``."""
    choose, lifetimes = random.Random(0), plan.lifetimes
    for _ in range(moves):
        if plan.size <= enough:
            break
        ends = _ends(plan)
        top = choose.choice([index for index, end in enumerate(ends) if end == plan.size])
        moved = choose.choice(sorted(beside[top], key=lambda index: -lifetimes[index].size)[:LARGEST])
        changed = [index for index in order if index != moved]
        changed.insert(choose.randrange(FRONT), moved)
        new = _planned(lifetimes, beside, changed)
        if new.size <= plan.size:
            plan, order = new, changed
    return plan


def _ends(plan: Plan) -> list[int]:
    return [offset + lifetime.size for offset, lifetime in zip(plan.offsets, plan.lifetimes, strict=True)]


def _beside(lifetimes: Sequence[Lifetime]) -> Beside:
    first, last = (np.array([getattr(each, end) for each in lifetimes], int) for end in ("first", "last"))
    together = (first[:, None] <= last) & (first <= last[:, None])
    return [np.flatnonzero(row).tolist() for row in together]


def _planned(lifetimes: Sequence[Lifetime], beside: Beside, order: Sequence[int]) -> Plan:
    """A plan that places temporaries in this order, each in the tightest gap between those in use with it."""
    sizes = [lifetime.size for lifetime in lifetimes]
    offsets, ends = [-1] * len(sizes), [0] * len(sizes)
    for index in order:
        size = sizes[index]
        taken = sorted([(offsets[other], ends[other]) for other in beside[index] if offsets[other] >= 0])
        best, best_gap, end = -1, -1, 0
        for start, stop in taken:
            gap = start - end
            if gap >= size and (best < 0 or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, stop)
        offsets[index] = end if best < 0 else best
        ends[index] = offsets[index] + size
    return Plan(tuple(lifetimes), tuple(offsets), max(ends, default=0))
