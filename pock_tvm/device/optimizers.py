"""Optimizers: hyperparameters fixed at compile time, and the rates that each step is given."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .arguments import FLAG, RATE, Kind, is_number, number, options
from .errors import OptionError

LR = {
    "lr": "The learning rate is given to each step: trainer.step(x, y, lr=0.01)",
    "params": "What is trained is the scheme's to say: pock.compile(model, scheme=…)",
}
BETAS = Kind(
    "a pair of numbers in [0, 1)",
    lambda betas: (
        isinstance(betas, tuple | list) and len(betas) == 2 and all(is_number(b) and 0 <= b < 1 for b in betas)
    ),
)


@options(LR, momentum=RATE, dampening=number("a finite number"), weight_decay=RATE, nesterov=FLAG)
@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, as ``torch.optim.SGD``."""

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise OptionError("SGD: nesterov needs a momentum and no dampening")

    @property
    def kernel(self) -> dict[str, Any]:
        """The update in the plain values that ``relay_passes.AppendUpdate`` takes."""
        return {"kind": "sgd", **asdict(self)}

    def rates(self, lr: float, step: int) -> list[float]:
        """Learning rate and, with dampening, the gradient's factor at step ``step`` (from 1).

        The first gradient is not dampened.
        """
        dampened = self.momentum and self.dampening
        return [lr, 1.0 if step == 1 else 1 - self.dampening] if dampened else [lr]


@options(LR, betas=BETAS, eps=RATE, weight_decay=RATE)
@dataclass(frozen=True)
class Adam:
    """Adam, as ``torch.optim.Adam``: the decay is added to the gradient."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    decoupled = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))

    @property
    def kernel(self) -> dict[str, Any]:
        """The update in the plain values that ``relay_passes.AppendUpdate`` takes."""
        return {
            "kind": "adam",
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "epsilon": self.eps,
            "weight_decay": self.weight_decay,
            "decoupled": self.decoupled,
        }

    def rates(self, lr: float, step: int) -> list[float]:
        """Learning rate, step size and the correction of the second moment, for step ``step`` (from 1)."""
        beta1, beta2 = self.betas
        return [lr, lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)]


@options(LR, betas=BETAS, eps=RATE, weight_decay=RATE)
@dataclass(frozen=True)
class AdamW(Adam):
    """AdamW, as ``torch.optim.AdamW``: the decay shrinks the weight."""

    weight_decay: float = 0.01

    decoupled = True


Optimizer = SGD | Adam
KINDS: dict[str, type[SGD] | type[Adam]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def to_json(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer as a manifest holds it."""
    kind = next(name for name, cls in KINDS.items() if cls is type(optimizer))
    return {"kind": kind, **asdict(optimizer)}


def from_json(description: dict[str, Any]) -> Optimizer:
    """The optimizer that a manifest holds."""
    settings = dict(description)
    kind = KINDS[settings.pop("kind")]
    return kind(**settings)
