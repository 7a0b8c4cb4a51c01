"""Whole steps of a default and a tuned program, in turns: whether the tuned one is faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ..device.program import Program

TURNS = 6
"""Profiles of each program that a kernel's times are the least of."""
STEPS_SECONDS, LEAST_STEPS = 4.0, 10
"""Seconds of whole steps of two programs, in turns, and the fewest steps of each."""


class Timed(Protocol):
    """Steps of a program on a device: :class:`pock_tvm.device.measuring.steps.Steps`, here or there."""

    def kernel_seconds(self) -> dict[str, float]:
        """Return the seconds that each kernel takes in a step, all its calls together."""

    def seconds(self) -> float | None:
        """Take a step, and return its seconds; None if it stops at a number that is not finite, which says nothing."""


StepsOf = Callable[[Program], Timed]
"""Makes the steps of a program on some device."""


def kernel_seconds(program: Program, steps_of: StepsOf) -> dict[str, float]:
    """Return the seconds that each kernel takes in a step, all its calls together."""
    (found,) = _least_seconds([steps_of(program)])
    return found


def compare_kernels(default: Program, tuned: Program, steps_of: StepsOf) -> dict[str, tuple[float, float]]:
    """Return the seconds of each kernel in a step of two programs, measured in turns."""
    before, after = _least_seconds([steps_of(default), steps_of(tuned)])
    return {name: (before[name], after[name]) for name in before}


def compare_steps(default: Program, tuned: Program, steps_of: StepsOf) -> tuple[float, float]:
    """Return the median seconds of whole steps of two programs, taken in turns.

    For steps that stop at a number that is not finite they are the sums of the kernels' seconds.
    """
    both = steps_of(default), steps_of(tuned)
    times: tuple[list[float], list[float]] = [], []
    end = time.perf_counter() + STEPS_SECONDS
    while time.perf_counter() < end or len(times[0]) < LEAST_STEPS:
        for steps, taken in zip(both, times, strict=True):
            seconds = steps.seconds()
            if seconds is None:
                before, after = _least_seconds(both)
                return sum(before.values()), sum(after.values())
            taken.append(seconds)
    return _median(times[0]), _median(times[1])


def _least_seconds(programs: Sequence[Timed]) -> list[dict[str, float]]:
    """Return the least seconds of each kernel in some profiles of each program, taken in turns."""
    profiles = [[steps.kernel_seconds() for steps in programs] for _ in range(TURNS)]
    return [{name: min(each[name] for each in found) for name in found[0]} for found in zip(*profiles, strict=True)]


def _median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds[1:])  # the first step loads pages
