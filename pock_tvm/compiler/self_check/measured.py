"""What a training step computes, as the compiled program and its reference both report it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SCALE = 2.0**64
"""How many times its gradient a weight moves in a measuring step: so far that the rounding of the weight is nothing to
the gradient, and not so far that a large gradient overflows."""
Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Batch:
    """Inputs by name, and the target of the loss (None where the network computes its own)."""

    inputs: dict[str, np.ndarray]
    target: np.ndarray | None


@dataclass(frozen=True)
class Measured:
    """One update: the outputs for the first batch, and what the steps on all batches of the update give."""

    outputs: tuple[np.ndarray, ...]
    """Of inference: batch norms use their running statistics."""
    losses: tuple[float, ...]
    """Of each batch; none where they are not known."""
    gradients: dict[str, np.ndarray | None]
    """Of each trained parameter, as a whole and in PyTorch's layout: the mean over the batches, zero where a weight is
    not trained; None where no path leads from the parameter to the loss. Empty where they are not known."""
    statistics: dict[str, np.ndarray] | None
    """The running statistics that the steps changed, behind them; None where they are not known."""


class Reference(Protocol):
    """How another framework computes a step of what a model was imported from."""

    name: str
    """The framework and its version."""

    def measure(self, weights: Weights, batches: list[Batch], *, precise: bool = False) -> Measured:
        """One update; in double precision if ``precise``."""

    def random_layer(self, weights: Weights, batch: Batch) -> str | None:
        """The first layer that gives something else for the same input again, if any does."""

    def layers(self, weights: Weights, batch: Batch, *, precise: bool = False) -> dict[str, np.ndarray]:
        """The last floating-point value of each layer, by the layer's name."""


def is_finite(measured: Measured) -> bool:
    """Whether loss and outputs are numbers."""
    return all(map(math.isfinite, measured.losses)) and all(np.isfinite(out).all() for out in measured.outputs)
