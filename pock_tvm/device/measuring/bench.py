"""Interface of a bench: it checks and times the schedules of one kernel on one device."""

from __future__ import annotations

import collections
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from .operands import Operand, difference, values_of

ROUND = 5e-4
"""Least seconds of a round of the default: the clock and the call take a few microseconds."""
ROUNDS, MOST_SECONDS = 8, 0.1
"""Rounds of the default and of a schedule, in turns, and the seconds after which no more begin. The fastest of each
counts: what else happens only adds."""
LEAST_ROUNDS = 3
HOPELESS = 3.0
"""Times as slow as the default in its first passes that a schedule needs no rounds."""
CALM, ATTEMPTS = 1.1, 3
"""Times as slow as lately that the default may be: else the machine is disturbed, which parallel schedules suffer from
most, and the rounds are repeated, so often at most."""
REST = 0.01
"""Seconds of sleep before that. Two threads that wait for each other on one core, as other processes keep the rest,
may stay there for a second, and take milliseconds a call; one that wakes is given an idle core."""
RECENT = 16
"""Measurements of the default that count as lately: a machine becomes slower for good, too."""
Loaded = TypeVar("Loaded")
"""A schedule that can run."""


class Built(NamedTuple):
    """A schedule of a kernel that was built: all that a device needs of it."""

    code: bytes
    """Code of the schedule: for a CPU a library with :data:`~.cpu_bench.REPEAT`, for a GPU the kernel's launches."""
    scratch: tuple[int, ...]
    """Bytes of each buffer that it takes behind its operands."""


class Kernel(NamedTuple):
    """Operands, target and default schedule of a kernel."""

    target: Mapping[str, Any]
    """Target of a manifest: ``triple`` and ``instructions``."""
    operands: tuple[Operand, ...]
    sets: int
    """Copies of the operands that a round goes through."""
    default: Built


class Timing(NamedTuple):
    """Measurement of a schedule. Fields: as those of :class:`pock_tvm.compiler.database.Trial`."""

    seconds: float | None
    reference: float | None
    failure: str | None = None


class Bench(ABC, Generic[Loaded]):
    """One kernel, and the results of its default schedule. A back end says how schedules are loaded and run."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.operands, self.sets = kernel, kernel.operands, kernel.sets
        rng = np.random.default_rng(0)
        self.inputs = [values_of(self.operands, rng, hostile=hostile) for hostile in (False, True)]
        self.prepare()
        self._default = self.load(kernel.default)
        self._expected = [self.results(self._default, values) for values in self.inputs]
        self.seconds(self._default, 1)  # the first run loads pages
        self._references: collections.deque[float] = collections.deque(maxlen=RECENT)
        for _ in range(LEAST_ROUNDS):
            time.sleep(REST)
            self._references.append(self.seconds(self._default, 1))
        self._passes = max(1, math.ceil(ROUND / (self.sets * min(self._references))))

    @abstractmethod
    def prepare(self) -> None:
        """Make the memory that rounds go through."""

    @abstractmethod
    def load(self, built: Built) -> Loaded:
        """Load a schedule."""

    @abstractmethod
    def results(self, loaded: Loaded, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once on operands of some values, and return the operands.

        Raises
        ------
        RuntimeError
            Something was written outside of them.
        """

    @abstractmethod
    def seconds(self, loaded: Loaded, passes: int) -> float:
        """Return the seconds of a run, over so many passes through all copies of the operands."""

    def measure(self, built: Built) -> Timing:
        """Check and time a schedule. Where the default stays disturbed, it counts as little slower than lately: no
        schedule is called faster for that."""
        kernel = self.load(built)
        for values, expected in zip(self.inputs, self._expected, strict=True):
            fault = difference(self.results(kernel, values), expected)
            if fault:
                return Timing(None, None, f"wrong: {fault}")
        reference, taken = (min(self.seconds(each, 1) for _ in range(LEAST_ROUNDS)) for each in (self._default, kernel))
        reference = min([*self._references, reference])
        if taken > HOPELESS * reference:
            return Timing(taken, reference)
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(REST)
            reference, taken = self._rounds(kernel)
            self._references.append(reference)
            if reference <= CALM * min(self._references):
                return Timing(taken, reference)
        return Timing(taken, CALM * min(self._references))

    def _rounds(self, kernel: Loaded) -> tuple[float, float]:
        """Return the least seconds of the default and of a schedule, in turns."""
        references: list[float] = []
        times: list[float] = []
        start = time.perf_counter()
        for number in range(ROUNDS):
            references.append(self.seconds(self._default, self._passes))
            times.append(self.seconds(kernel, self._passes))
            if number + 1 >= LEAST_ROUNDS and time.perf_counter() - start > MOST_SECONDS:
                break
        return min(references), min(times)
