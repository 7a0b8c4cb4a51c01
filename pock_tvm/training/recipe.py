"""Recipes, and the steps that they make: which samples, in which order, at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device.arguments import SMALLEST, number, one_of, options
from ..errors import InputError
from .data import Batch, DataSet
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
        raise InputError(f"there are {len(data)} samples, fewer than one batch of {batch}: compile for a smaller one")
    return max(round(recipe.epochs * (len(data) // batch)), recipe.epochs > 0)


class TrainingSteps:
    """Iterator over the batches of a run with their learning rates; ``seed`` determines order and augmentation.

    Each epoch reads the samples in a new random order, and drops an incomplete last batch. A run can be left after any
    step: ``position`` is where another iterator goes on, for batches of another size too.
    """

    def __init__(
        self, recipe: Recipe, data: DataSet, batch: int, seed: int, position: Mapping[str, Any] | None = None
    ) -> None:
        self.total, self.per_epoch = steps_of(recipe, data, batch), len(data) // batch
        self.epoch = self.samples = 0
        """Epochs before the current one, and samples of it that were read."""
        self._recipe, self._data, self._batch = recipe, data, batch
        self._rng = np.random.default_rng(seed)
        if position is not None:
            self.epoch, self.samples = int(position["epoch"]), int(position["samples"])
            self._rng.bit_generator.state = position["order"]
        self._shuffle()
        if position is not None:
            self._rng.bit_generator.state = position["random"]

    @property
    def done(self) -> int:
        """Steps of the run so far."""
        return self.epoch * self.per_epoch + min(math.ceil(self.samples / self._batch), self.per_epoch)

    @property
    def epoch_is_over(self) -> bool:
        """Whether the current epoch has no more batches."""
        return self.samples + self._batch > len(self._data) or self.done >= self.total

    @property
    def position(self) -> dict[str, Any]:
        """Where the run is, in plain values: epoch, samples read, random state at the epoch's start and now."""
        now = self._rng.bit_generator.state
        return {"epoch": self.epoch, "samples": self.samples, "order": self._begin, "random": now}

    def __iter__(self) -> Iterator[tuple[Batch, float]]:
        return self

    def __next__(self) -> tuple[Batch, float]:
        rate = self._recipe.lr * SCHEDULES[self._recipe.lr_schedule](self.done / max(self.total, 1))
        if self.done >= self.total:
            raise StopIteration
        if self.epoch_is_over:
            self.epoch, self.samples = self.epoch + 1, 0
            self._shuffle()
        chosen = self._order[self.samples : self.samples + self._batch]
        self.samples += self._batch
        return self._data.read(chosen, self._rng), rate

    def _shuffle(self) -> None:
        self._begin: Mapping[str, Any] = self._rng.bit_generator.state
        self._order = self._rng.permutation(len(self._data))
