"""Recomputation until a plan holds a budget (phase 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tvm import IRModule, relax

from ..ir import update_function
from .fit import Fit, TooLarge
from .placement import arena_estimate
from .recompute import Recomputed, recomputed

PLANS = 6
"""How often a plan that is too large is made again."""


def within_budget(
    mod: IRModule,
    steps: Sequence[str],
    everything: Sequence[str],
    costs: Mapping[str, float],
    budget: int,
    max_slowdown: float = math.inf,
) -> Fit[IRModule] | TooLarge:
    """Recompute values in training steps until their arena holds a budget, in bytes.

    ``steps`` are the functions that may compute again, ``everything`` all that share the arena, ``costs`` the seconds
    that each kernel takes, ``max_slowdown`` the largest share of a step's time spent on recomputation. A plan may need
    a little more than the most bytes in use: the difference is then taken off.
    """
    sizes = {name: arena_estimate(mod[name]) for name in everything}
    # A plan holds all that is in use: within it nothing is computed again.
    takes = {name: recomputed(mod[name], sizes[name], costs).seconds for name in steps}

    def again(name: str, target: int) -> Recomputed:
        seconds = max_slowdown if math.isinf(max_slowdown) else max_slowdown * takes[name]
        return recomputed(mod[name], target, costs, seconds)

    def fitted(name: str) -> tuple[relax.Function, int]:
        target, best = budget, (mod[name], sizes[name])
        for attempt in range(PLANS):
            if best[1] <= budget:
                break
            # The last resort is to recompute all that saves anything.
            found = again(name, 0 if attempt == PLANS - 1 else max(target, 0))
            if found.peak > target and not math.isinf(max_slowdown):
                best = min(best, (found.function, found.peak), key=lambda found: found[1])
                break
            size = arena_estimate(found.function)
            best = min(best, (found.function, size), key=lambda found: found[1])
            target -= size - budget
        return best

    def smallest(name: str) -> int:
        return min(sizes[name], arena_estimate(again(name, 0).function))

    found = {name: fitted(name) for name in steps}
    fixed = max(size for name, size in sizes.items() if name not in steps)
    if max(fixed, *(size for _, size in found.values())) > budget:
        return TooLarge(max(fixed, *(smallest(name) for name in steps)))
    for name, (func, _) in found.items():
        mod = update_function(mod, name, func)
    return Fit(mod)
