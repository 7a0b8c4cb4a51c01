"""Results of tuning."""

from __future__ import annotations

from dataclasses import dataclass

from schedules.decisions import Decisions

from ..device.program import Program


@dataclass(frozen=True)
class KernelOutcome:
    """Result for one kernel that has choices."""

    name: str
    share: float
    """Share of a default step's time."""
    trials: int
    gain: float
    """Seconds of the default over those of the chosen schedule, within steps: 1 if the default was kept."""
    decisions: Decisions
    """Empty for the default."""


@dataclass(frozen=True)
class TuningResult:
    """Result of tuning."""

    program: Program
    """The tuned program; the given one if no schedule made its step faster."""
    before: float
    """Median seconds of a step with default schedules, measured in turns with the tuned one."""
    after: float
    """Median seconds of a step of :attr:`program`."""
    trials: int
    """Trials of the program's kernels in the database."""
    failures: int
    """Trials of this run that failed."""
    kernels: list[KernelOutcome]
    """Those with the largest share of a step first."""
    choices: Decisions
    """Choices above kernels that are not the defaults."""
    choices_gain: float
    """How many times as fast they made the step, before its kernels were tuned."""
    estimated: bool = False
    """Whether nothing was measured: gains, shares and :attr:`before` are estimates then, and the latter is 1."""

    @property
    def gain(self) -> float:
        """How many times as fast the step has become."""
        return self.before / self.after
