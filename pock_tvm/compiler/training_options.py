"""How a network is trained, as the pipeline's phases read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relay_passes.ir.trained_part import Trained
from relay_passes.kernels.lift_frozen import PREPARE
from relay_passes.memory.order_updates import UPDATE
from relay_passes.training.evaluate_loss import EVALUATE

from ..device.losses import FUNCTION

FORWARD, TRAIN, ACCUMULATE, PREDICT = "main", "train_step", "accumulate_step", "predict"
PRECISIONS = FLOAT32, BFLOAT16, FLOAT16 = "float32", "bfloat16", "float16"
FROZEN = FLOAT32, "int8"
"""Types that frozen layers before the first trained parameter compute in."""


@dataclass(frozen=True)
class Training:
    """Training options of the phases, as plain values."""

    trained: Trained
    """Trained parameters by name, with parts along axes of the parameter as the forward module declares it."""
    loss: Mapping[str, Any] = field(default_factory=lambda: {"kind": "cross_entropy"})
    """Fields of :class:`relay_passes.AppendLoss`."""
    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"kind": "sgd", "momentum": 0.0})
    """Fields of :class:`relay_passes.AppendUpdate`'s ``optimizer``."""
    batch_norm: str = "frozen"
    """Statistics that training normalises with: ``frozen`` or ``batch``."""
    accumulate: int = 1
    """Number of steps that share one update."""
    micro_batches: int = 1
    """Number of parts of the batch that a step runs one after the other, summing gradients."""
    clip_norm: float | None = None
    copies: int = 1
    """Copies of a frozen weight that may be kept: 2 keeps one for the forward and one for the backward products."""
    guard: str = UPDATE
    """How steps are guarded against numbers that are not finite: a value of :class:`relay_passes.OrderUpdates`."""
    precision: str = FLOAT32
    """Type that values between kernels are stored in, and that products multiply: float32, or one of 16 bits."""
    store_permuted: bool = True
    """Store trained weights in the layout in which they are read. Required for weights trained in part."""

    @property
    def is_shared(self) -> bool:
        """Whether several runs share one update, so that gradients are summed."""
        return self.accumulate * self.micro_batches > 1

    @property
    def steps(self) -> list[str]:
        """Names of the functions that compute gradients."""
        return [TRAIN, ACCUMULATE] if self.is_shared else [TRAIN]

    @property
    def evaluation(self) -> list[str]:
        """Names of the functions that evaluate a loss function of the user's."""
        return [EVALUATE] if self.loss["kind"] == FUNCTION else []

    @property
    def functions(self) -> list[str]:
        """Names of all functions from phase 6 on."""
        return [PREDICT, *self.steps, *self.evaluation, PREPARE]
