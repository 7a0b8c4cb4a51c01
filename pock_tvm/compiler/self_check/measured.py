"""The results of an update, as a compiled program and its reference both report them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SCALE = 2.0**64
"""Factor of the gradient in a measuring step: so large that the rounding of the weight is negligible beside the
gradient, and so small that a large gradient does not overflow."""
Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Batch:
    """Inputs by name, and the target of the loss: of a loss function one or more, by key; None where the network
    computes its own."""

    inputs: dict[str, np.ndarray]
    target: np.ndarray | dict[str, np.ndarray] | None


@dataclass(frozen=True)
class Measured:
    """The results of one update: outputs for its first batch, and of the steps on all its batches."""

    outputs: tuple[np.ndarray, ...]
    """Outputs of inference: batch norms use their running statistics."""
    losses: tuple[float, ...]
    """The loss of each batch; empty where unknown."""
    gradients: dict[str, np.ndarray | None]
    """The mean gradient of each trained parameter over the batches, in PyTorch's shape and layout: zero in untrained
    parts, None where no path leads from the parameter to the loss. Empty where unknown."""
    statistics: dict[str, np.ndarray] | None
    """The running statistics that the steps changed, after the steps; None where unknown."""


class Reference(Protocol):
    """A framework that runs the source of an imported model."""

    name: str
    """The framework and its version."""
    gradients_are_derivatives: bool
    """Whether nothing keeps a gradient from being the derivative of the loss, as ``detach`` does. False if unknown."""

    def measure(self, weights: Weights, batches: list[Batch], *, precise: bool = False) -> Measured:
        """Run one update; in double precision if ``precise``."""

    def random_layer(self, weights: Weights, batch: Batch) -> str | None:
        """The first layer whose value for the same input differs from run to run, if any."""

    def layers(self, weights: Weights, batch: Batch, *, precise: bool = False) -> dict[str, np.ndarray]:
        """The last floating-point value of each layer, by the layer's name."""


def is_finite(measured: Measured) -> bool:
    """Whether all losses and outputs are finite."""
    return all(map(math.isfinite, measured.losses)) and all(np.isfinite(out).all() for out in measured.outputs)
