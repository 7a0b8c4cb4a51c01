"""A run: one fine-tuning, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from .candidates import Candidate, Together


@dataclass(frozen=True)
class Run:
    """One fine-tuning: what was trained, how long, and what came of it."""

    candidate: Candidate | Together
    epochs: float
    seed: int
    score: float | None
    """Accuracy in percent, or minus the loss where there are no classes; None where the loss ceased to be a number."""
    loss: float | None = None
    """The mean loss of the same samples, where it is known."""
