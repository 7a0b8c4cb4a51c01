"""What is computed again rather than kept, unasked and to meet a budget (phase 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tvm import IRModule, relax

from ..analysis.kernel_costs import kernel_costs, seconds
from ..analysis.live_ranges import live_ranges
from ..ir import update_function
from .placement import place
from .recompute import Recomputed, recomputed

PLANS = 6
"""How often a plan that is too large is made again."""
WORTH = 20
"""How many percent of the arena a percent of a step's time has to save where nobody asked for a budget."""
SHARES = [1 - 0.05 * step for step in range(1, 13)]
"""Parts of the arena that are tried, one after the other."""


class BudgetError(Exception):
    """No program holds a budget; ``smallest`` is the least that would do, in bytes, ``state`` of them not the arena."""

    def __init__(self, smallest: int, state: int = 0) -> None:
        super().__init__(smallest)
        self.smallest, self.state = smallest, state


def kernel_seconds(mod: IRModule, everything: Sequence[str]) -> dict[str, float]:
    """About how many seconds each kernel of a module takes; ``everything`` names what is no kernel."""
    return {name: seconds(cost) for name, cost in kernel_costs(mod, everything).items()}


def worthwhile(mod: IRModule, steps: Sequence[str], costs: Mapping[str, float]) -> IRModule:
    """The module with what saves much and costs next to nothing computed again in its training steps.

    An activation that is a factor times another one that is kept anyway, attention's weights beside its keys and
    queries: reading them again from memory would take as long.
    """
    for name in steps:
        mod = update_function(mod, name, _worthwhile(mod[name], costs))
    return mod


def _worthwhile(func: relax.Function, costs: Mapping[str, float]) -> relax.Function:
    best, size = func, _planned(func)
    whole = found = recomputed(func, size, costs)  # a plan holds all that is in use: nothing is computed again
    if not whole.seconds or not size:  # no kernels, or none that hand anything on
        return best
    least, misses = 1.0, 0
    for share in SHARES:
        left = (1 + (1 - share) / WORTH) * whole.seconds - found.seconds
        found = recomputed(found.function, int(share * size), costs, left)
        score = _planned(found.function) / size + WORTH * (found.seconds / whole.seconds - 1)
        misses = 0 if score < least else misses + 1
        if score < least:
            best, least = found.function, score
        if misses == 2:
            break
    return best


def within_budget(
    mod: IRModule,
    steps: Sequence[str],
    everything: Sequence[str],
    costs: Mapping[str, float],
    budget: int,
    most: float = math.inf,
) -> IRModule:
    """The module with values computed again in its training steps, until its plan holds the budget.

    ``steps`` are the functions that may compute again, ``everything`` all that share the arena, ``costs`` the seconds
    that each kernel takes, ``most`` what of a step's time may be taken. A plan may need a little more than the most
    bytes in use: the difference is then taken off.

    Raises
    ------
    BudgetError
        No recomputation brings the arena down to the budget.
    """

    sizes = {name: _planned(mod[name]) for name in everything}
    # A plan holds all that is in use: within it nothing is computed again.
    takes = {name: recomputed(mod[name], sizes[name], costs).seconds for name in steps}

    def again(name: str, target: int) -> Recomputed:
        return recomputed(mod[name], target, costs, most if math.isinf(most) else most * takes[name])

    def fitted(name: str, budget: int) -> tuple[relax.Function, int]:
        target, best = budget, (mod[name], sizes[name])
        for attempt in range(PLANS):
            if best[1] <= budget:
                break
            # The last resort is to recompute all that saves anything.
            found = again(name, 0 if attempt == PLANS - 1 else max(target, 0))
            if found.peak > target and not math.isinf(most):
                best = min(best, (found.function, found.peak), key=lambda found: found[1])
                break
            size = _planned(found.function)
            best = min(best, (found.function, size), key=lambda found: found[1])
            target -= size - budget
        return best

    def smallest(name: str) -> int:
        return min(sizes[name], _planned(again(name, 0).function))

    found = {name: fitted(name, budget) for name in steps}
    fixed = max(size for name, size in sizes.items() if name not in steps)
    if max(fixed, *(size for _, size in found.values())) > budget:
        raise BudgetError(max(fixed, *(smallest(name) for name in steps)))
    for name, (func, _) in found.items():
        mod = update_function(mod, name, func)
    return mod


def _planned(func: relax.Function) -> int:
    """About the bytes of a function's arena: the final plan is made with more care."""
    return place(live_ranges(func), moves=0).size
