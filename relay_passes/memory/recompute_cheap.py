"""Rematerialises values that are cheap to compute and long-lived, without a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..ir import update_function
from .placement import arena_estimate
from .recompute import recomputed

WORTH = 20
"""Percent of the arena that recomputation must save for each percent of a step's time."""
SHARES = [1 - 0.05 * step for step in range(1, 13)]
"""Arena targets tried in turn, relative to the original size."""


@tvm.transform.module_pass(opt_level=0, name="RecomputeCheap")
@dataclass(frozen=True)
class RecomputeCheap:
    """Rematerialise values that are cheap to compute and long-lived.

    In, out: dataflow functions of ``call_tir`` in execution order. Examples: an activation that is a scaled copy of a
    saved one, or attention weights beside saved keys and queries. Reading them back from memory would take as long.
    """

    functions: Sequence[str]
    costs: Mapping[str, float]
    """Seconds of each kernel."""

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        for name in self.functions:
            mod = update_function(mod, name, _best(mod[name], self.costs))
        return mod


def _best(func: relax.Function, costs: Mapping[str, float]) -> relax.Function:
    """Return the function with the best trade of arena size for time, over smaller and smaller arenas."""
    best, size = func, arena_estimate(func)
    whole = found = recomputed(func, size, costs)  # the target is the plan's size, so nothing is recomputed
    if not whole.seconds or not size:  # no kernels, or no temporaries
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
