"""Chooses the number of micro-batches that fits a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from relay_passes.analysis.batch_axis import batch_of
from relay_passes.memory.fit import Fit, TooLarge
from schedules.extents import divisors

from ..frontend import Model

LITTLE = 1 / 8
"""Largest share of a step's time that recomputation may take before more micro-batches are tried instead."""

T = TypeVar("T")
Attempt = Callable[[int, float], Fit[T] | TooLarge]
"""Compilation attempt: takes the number of micro-batches, and the largest share of a step's time for recomputation."""


def batch_parts(model: Model) -> list[int]:
    """Return the numbers of micro-batches that divide a model's batch, in ascending order."""
    return divisors(batch_of(model.module["main"]))


def fewest_parts(
    attempt: Attempt[T], counts: Sequence[int], budget: float, can_split: Callable[[], bool]
) -> Fit[T] | TooLarge:
    """Return the first attempt that fits the budget, over ``counts`` of micro-batches; else the smallest failure.

    Micro-batches cost less than recomputation: each only starts the kernels and reads the weights again. Try the counts
    in order with little recomputation, then the first and the last with unlimited recomputation. ``can_split`` tells
    whether the network can run on parts of its batch.
    """
    if len(counts) == 1:
        return attempt(counts[0], math.inf)
    failed: list[TooLarge] = []
    large = 1.0  # Skip counts too small to fit: state is constant, and the arena shrinks at most in proportion.
    for count in counts:
        if count < large:
            continue
        if count > 1 and not can_split():
            counts = counts[:1]
            break
        found = attempt(count, LITTLE)
        if isinstance(found, Fit):
            return found
        failed.append(found)
        left = budget - found.state
        large = count * (found.smallest - found.state) / left if left > 0 else math.inf
    for count in dict.fromkeys((counts[0], counts[-1])):
        found = attempt(count, math.inf)
        if isinstance(found, Fit):
            return found
        failed.append(found)
    return min(failed, key=lambda found: found.smallest)
