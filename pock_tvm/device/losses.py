"""Losses: options of a compile, and their values over outputs on the host."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .arguments import Kind, is_whole, number, one_of, options, whole
from .arrays import count_of
from .errors import OptionError

KINDS = ("cross_entropy", "causal_lm", "mse", "bce_with_logits", "output")
FUNCTION = "function"
"""Kind of a loss that a function of the user's computes."""
EVALUATE = "evaluate"
"""Entry point that computes it, and before a dot the names of what it reads."""
TARGET = "target"
"""Name of the target among a program's inputs."""


def target_name(key: object) -> str:
    """Name one of several targets among a program's inputs."""
    return f"{TARGET}.{key}"


@options(
    kind=one_of(f"a name: {', '.join(KINDS)}", str),
    output=whole("the position of an output, from 0", 0),
    ignore_index=Kind("a whole number", is_whole),
    label_smoothing=number("a number between 0 and 1", 0, 1),
)
@dataclass(frozen=True)
class Loss:
    """A loss over one output of the network; see :class:`relay_passes.AppendLoss` for shapes.

    ``kind``: cross_entropy, causal_lm, mse, bce_with_logits, or output, where the network returns its own loss.
    ``output`` is the position of the output that it reads. A program whose loss is a function of its own has the kind
    ``function``.
    """

    kind: str = "cross_entropy"
    output: int = 0
    ignore_index: int = -100
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, FUNCTION):
            raise OptionError(f"there is no loss '{self.kind}'; there are {', '.join(KINDS)}")

    @property
    def has_classes(self) -> bool:
        """Whether targets are class indices."""
        return self.kind in ("cross_entropy", "causal_lm")

    @property
    def has_target(self) -> bool:
        """Whether there is a target; a network that returns its own loss takes none."""
        return self.kind != "output"

    def to_json(self) -> dict[str, Any]:
        """The loss as a manifest holds it."""
        return asdict(self)

    def counted(self, target: np.ndarray) -> int:
        """The number of values that the loss averages over."""
        if self.kind == "causal_lm":
            target = target[:, 1:]
        return target.size - (count_of(self.ignore_index, target) if self.has_classes else 0)

    def measure(self, output: np.ndarray, target: np.ndarray) -> tuple[float, int, int]:
        """The summed loss of some outputs, how many values it sums over, and how many predictions are right (-1: no
        classes)."""
        output = output.astype(np.float64)
        if self.kind == "mse":
            return float(((output - target) ** 2).sum()), target.size, -1
        if self.kind == "bce_with_logits":
            return float((np.logaddexp(0, -output) + output * (1 - target)).sum()), target.size, -1
        if self.kind == "output":
            return float(output.sum()), output.size, -1
        if self.kind == "causal_lm":
            output, target = output[:, :-1], target[:, 1:]
        else:
            output = np.moveaxis(output, 1, -1)
        logits, labels = output.reshape(-1, output.shape[-1]), target.reshape(-1)
        counted = labels != self.ignore_index
        logits, labels = logits[counted], labels[counted]
        log_sum = np.logaddexp.reduce(logits, axis=-1)
        loss = log_sum - logits[np.arange(len(labels)), labels]
        if self.label_smoothing:
            uniform = log_sum - logits.mean(axis=-1)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * uniform
        return float(loss.sum()), len(labels), int((logits.argmax(axis=-1) == labels).sum())


def as_loss(loss: Any) -> Loss:
    """A loss from its name or itself."""
    loss = loss if isinstance(loss, Loss) else Loss(loss)
    if loss.kind == FUNCTION:
        raise OptionError("a loss function is no part of a program: give it again, loss=pock.CustomLoss(…)")
    return loss
