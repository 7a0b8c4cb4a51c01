"""Rematerialises values until the arena fits a budget (phase 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tvm import IRModule, relax

from ..ir import update_function
from .fit import Fit, TooLarge
from .placement import arena_estimate
from .recompute import Recomputed, recomputed

PLANS = 6
"""Largest number of plans tried for one function. The last rematerialises everything that saves memory."""


def within_budget(
    mod: IRModule,
    steps: Sequence[str],
    everything: Sequence[str],
    costs: Mapping[str, float],
    budget: int,
    max_slowdown: float = math.inf,
) -> Fit[IRModule] | TooLarge:
    """Rematerialise values in training steps until their arena fits a budget, in bytes.

    ``steps`` are the functions that may recompute, ``everything`` all functions that share the arena, ``costs`` each
    kernel's seconds, ``max_slowdown`` the largest share of a step's time spent on recomputation. A plan may exceed the
    peak of bytes in use; the next attempt then lowers its target by the excess.
    """
    sizes = {name: arena_estimate(mod[name]) for name in everything}
    # The target is the whole plan's size, so nothing is recomputed.
    takes = {name: recomputed(mod[name], sizes[name], costs).seconds for name in steps}

    def again(name: str, target: int) -> Recomputed:
        seconds = max_slowdown if math.isinf(max_slowdown) else max_slowdown * takes[name]
        return recomputed(mod[name], target, costs, seconds)

    def fitted(name: str) -> tuple[relax.Function, int]:
        target, best = budget, (mod[name], sizes[name])
        for attempt in range(PLANS):
            if best[1] <= budget:
                break
            # Last resort: rematerialise everything that saves memory.
            found = again(name, 0 if attempt == PLANS - 1 else max(target, 0))
            size = arena_estimate(found.function)
            best = min(best, (found.function, size), key=lambda found: found[1])
            if found.peak > target and not math.isinf(max_slowdown):
                break
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
