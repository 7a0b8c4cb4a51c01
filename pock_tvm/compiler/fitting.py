"""In how many micro-batches a step runs to meet a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from relay_passes.memory.fit import Fit, TooLarge

LITTLE = 1 / 8
"""Largest share of a step's time that recomputation may take before more micro-batches are tried instead."""

T = TypeVar("T")
Attempt = Callable[[int, float], Fit[T] | TooLarge]
"""Takes the number of micro-batches, and the largest share of a step's time that recomputation may take."""


def fewest_parts(
    attempt: Attempt[T], counts: Sequence[int], budget: float, can_split: Callable[[], bool]
) -> Fit[T] | TooLarge:
    """The first attempt that holds a budget, in one of these numbers of micro-batches; else the least that would do.

    Micro-batches cost less than recomputation: each starts the kernels and reads the weights again, and no more. As few
    as will do are taken, with little recomputation; where none will do, as much of it as it takes. ``can_split`` says
    whether the network can run on parts of its batch at all.
    """
    if len(counts) == 1:
        return attempt(counts[0], math.inf)
    failed: list[TooLarge] = []
    large = 1.0  # in as many parts what did not fit might: state stays as it is, the arena shrinks no faster
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
