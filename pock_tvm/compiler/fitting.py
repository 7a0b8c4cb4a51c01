"""In how many micro-batches a step runs to meet a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from relay_passes.memory.budget import BudgetError

from ..errors import BatchError

LITTLE = 1 / 8
"""What of a step's time recomputation may take before more micro-batches are tried instead."""

T = TypeVar("T")


def fewest_parts(attempt: Callable[[int, float], T], counts: Sequence[int], budget: float) -> T:
    """The first attempt that holds a budget, of a program that runs in one of these numbers of micro-batches.

    ``attempt`` takes the number, and how much of a step's time recomputation may take. Parts of the batch cost less
    than recomputation: each starts the kernels and reads the weights again, and no more. As few as will do are taken,
    with little recomputation; where none will do, as much of it as it takes.

    Raises
    ------
    BudgetError
        None does; its sizes are of the smallest.
    """
    if len(counts) == 1:
        return attempt(counts[0], math.inf)
    failed: list[BudgetError] = []
    large = 1.0  # in as many parts what did not fit might: state stays as it is, the arena shrinks no faster
    for count in counts:
        try:
            if count >= large:
                return attempt(count, LITTLE)
        except BudgetError as error:
            failed.append(error)
            left = budget - error.state
            large = count * (error.smallest - error.state) / left if left > 0 else math.inf
        except BatchError:
            if count == counts[0]:
                raise
            counts = counts[:1]  # the network needs the whole batch at once
            break
    for count in dict.fromkeys((counts[0], counts[-1])):
        try:
            return attempt(count, math.inf)
        except BudgetError as error:
            failed.append(error)
    raise min(failed, key=lambda error: error.smallest)
