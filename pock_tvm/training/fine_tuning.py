"""Fine-tuning as a sequence of steps: which samples, in which order, at which learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device.arguments import SMALLEST, number, one_of, options
from ..errors import InputError
from .data import Batch, DataSet, training_batches
from .lr_schedules import SCHEDULES


@options(
    epochs=number("a number from 0", 0),
    lr=number("a learning rate: a positive finite number", SMALLEST),
    lr_schedule=one_of(f"one of the names {', '.join(SCHEDULES)}", str),
)
@dataclass(frozen=True)
class Recipe:
    """Length and learning rate of a fine-tuning run."""

    epochs: float = 1
    """Number of epochs; may be fractional."""
    lr: float = 0.01
    lr_schedule: str = "cosine"
    """A name of :mod:`pock_tvm.training.lr_schedules`."""

    def __post_init__(self) -> None:
        if self.lr_schedule not in SCHEDULES:
            raise InputError(
                f"there is no learning-rate schedule '{self.lr_schedule}'; there are {', '.join(SCHEDULES)}"
            )


def steps_of(recipe: Recipe, data: DataSet, batch: int) -> int:
    """Compute the number of steps of a recipe: at least one, unless it has zero epochs.

    Raises
    ------
    InputError
        There are fewer samples than one batch needs.
    """
    if len(data) < batch:
        raise InputError(f"there are {len(data)} samples, fewer than one batch of {batch}")
    return max(round(recipe.epochs * (len(data) // batch)), recipe.epochs > 0)


def training_steps(recipe: Recipe, data: DataSet, batch: int, seed: int) -> Iterator[tuple[Batch, float]]:
    """Yield the batches of a run with their learning rates; ``seed`` determines order and augmentation."""
    total, per_epoch = steps_of(recipe, data, batch), len(data) // batch
    rng = np.random.default_rng(seed)
    for start in range(0, total, per_epoch):
        batches = training_batches(data, batch, rng)
        for done in range(start, min(start + per_epoch, total)):
            yield next(batches), recipe.lr * SCHEDULES[recipe.lr_schedule](done / total)


def fine_tune(trainer: Any, recipe: Recipe, data: DataSet, seed: int) -> bool:
    """Train a :class:`pock_tvm.Trainer` by a recipe; stop and return False if the loss becomes NaN or infinite."""
    batch = trainer.program.manifest["inputs"][0]["shape"][0]
    return all(np.isfinite(trainer.step(x, y, lr=lr)) for (x, y), lr in training_steps(recipe, data, batch, seed))
