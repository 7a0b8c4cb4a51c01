"""Phase 8 under a budget: recomputation until the plan fits."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import IRModule, relax

from relay_passes.ir import update_function
from relay_passes.plan_arena import Memory, place
from relay_passes.recompute import recomputed

from .profile import kernel_costs, seconds

PLANS = 6
"""How often a plan that is too large is made again."""


class BudgetError(Exception):
    """The smallest arena that a program can do with, in bytes."""


def within_budget(mod: IRModule, steps: Sequence[str], everything: Sequence[str], budget: int) -> IRModule:
    """The module with values computed again in its training steps, until its plan holds the budget.

    ``steps`` are the functions that may compute again, ``everything`` all that share the arena. A plan may need a
    little more than the most bytes in use: the difference is then taken off.

    Raises
    ------
    BudgetError
        No recomputation brings the arena down to the budget.
    """
    costs = {name: seconds(cost) for name, cost in kernel_costs(mod, everything).items()}

    def planned(func: relax.Function) -> int:
        return place(Memory(func).lifetimes()).size

    def fitted(name: str, budget: int) -> tuple[relax.Function, int]:
        target, best = budget, (mod[name], planned(mod[name]))
        for attempt in range(PLANS):
            if best[1] <= budget:
                break
            # The last resort is to recompute all that saves anything.
            func, _ = recomputed(mod[name], 0 if attempt == PLANS - 1 else max(target, 0), costs)
            size = planned(func)
            best = min(best, (func, size), key=lambda found: found[1])
            target -= size - budget
        return best

    def smallest(name: str) -> int:
        return min(planned(mod[name]), planned(recomputed(mod[name], 0, costs)[0]))

    found = {name: fitted(name, budget) for name in steps}
    fixed = max(planned(mod[name]) for name in everything if name not in steps)
    if max(fixed, *(size for _, size in found.values())) > budget:
        raise BudgetError(max(fixed, *(smallest(name) for name in steps)))
    for name, (func, _) in found.items():
        mod = update_function(mod, name, func)
    return mod
