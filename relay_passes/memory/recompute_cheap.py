"""Computes again what saves much memory and takes next to no time, although no budget asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..ir import update_function
from .placement import arena_estimate
from .recompute import recomputed

WORTH = 20
"""Percent of the arena that a percent of a step's time has to save."""
SHARES = [1 - 0.05 * step for step in range(1, 13)]
"""Parts of the arena that are tried, one after the other."""


@tvm.transform.module_pass(opt_level=0, name="RecomputeCheap")
@dataclass(frozen=True)
class RecomputeCheap:
    """Recompute values that are cheap to compute and long-lived.

    In, out: dataflow functions of ``call_tir`` in the order in which they will run. An activation that is a factor
    times another one that is kept anyway, attention's weights beside its keys and queries: reading them again from
    memory would take as long.
    """

    functions: Sequence[str]
    costs: Mapping[str, float]
    """The seconds that each kernel takes."""

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        for name in self.functions:
            mod = update_function(mod, name, _best(mod[name], self.costs))
        return mod


def _best(func: relax.Function, costs: Mapping[str, float]) -> relax.Function:
    """The function whose arena and time together are least, of those for smaller and smaller arenas."""
    best, size = func, arena_estimate(func)
    whole = found = recomputed(func, size, costs)  # a plan holds all that is in use: nothing is computed again
    if not whole.seconds or not size:  # no kernels, or none that hand anything on
        return best
    least, misses = 1.0, 0
    for share in SHARES:
        left = (1 + (1 - share) / WORTH) * whole.seconds - found.seconds
        found = recomputed(found.function, int(share * size), costs, left)
        score = arena_estimate(found.function) / size + WORTH * (found.seconds / whole.seconds - 1)
        misses = 0 if score < least else misses + 1
        if score < least:
            best, least = found.function, score
        if misses == 2:
            break
    return best
