"""The state of training as a value, in PyTorch's names and layouts: it fits any program of the same network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class State:
    """One state of a trained parameter: of the optimizer, or a sum of gradients."""

    slot: str
    """``momentum_buffer``, ``exp_avg``, ``exp_avg_sq`` or ``gradient_sum``."""
    of: str
    """The parameter."""
    trained: Any
    """``full``, or ``{"axis": …, "indices": …}``: what of the parameter ``values`` belong to."""
    values: np.ndarray
    """In PyTorch's layout, along the axis with the trained indices alone."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that training has made: what a checkpoint holds."""

    weights: dict[str, np.ndarray]
    """The weights that are not the compiled ones any more, whole."""
    states: tuple[State, ...]
    frozen: dict[str, str]
    """The CRC-32 of all other weights."""
    optimizer: dict[str, Any]
    steps: int
    updates: int
    """Optimizer steps."""
    pending: int
    """Steps since the last update, whose gradients are summed."""
    accumulate: int
    """Steps that shared an update."""
    seed: int | None = None
    """Seed of the numbers that steps draw; None where they draw none."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Records of the training loop, in plain values of JSON."""
