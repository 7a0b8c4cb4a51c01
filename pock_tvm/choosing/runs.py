"""Runs and the gains that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .candidates import Candidate, WeightSet


@dataclass(frozen=True)
class Run:
    """One fine-tuning run and its result."""

    candidate: Candidate | WeightSet
    epochs: float
    seed: int
    score: float | None
    """Validation accuracy in percent, or the negative loss where there are no classes; None if the loss became NaN or
    infinite."""
    loss: float | None = None
    """Mean validation loss, where it was recorded."""


@dataclass(frozen=True)
class Gain:
    """Difference in score between two candidates, in points (percent of accuracy), over paired seeds."""

    mean: float
    spread: float | None
    """Standard deviation over seeds; None with one seed."""
    seeds: int
    epochs: float

    def times(self, factor: float) -> Gain:
        """Scale the gain, for another unit."""
        spread = None if self.spread is None else abs(factor) * self.spread
        return replace(self, mean=factor * self.mean, spread=spread)
