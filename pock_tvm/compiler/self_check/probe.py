"""Measures a compiled program through a trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...device.optimizers import SGD, Optimizer
from ...device.parameters import FULL, STATISTICS
from ...device.random import words_of
from ...device.trainer import Trainer
from ...errors import CheckError, NonFiniteError
from .batches import keyed
from .measured import SCALE, Batch, Measured, Weights

RATE = 0.125
"""The learning rate of the update that is compared with PyTorch's optimizers."""


@dataclass(frozen=True)
class _Linear:
    """Rates with which a first update is ``weight - SCALE * gradient`` for each optimizer."""

    optimizer: Optimizer

    def rates(self, lr: float, step: int) -> list[float]:
        if isinstance(self.optimizer, SGD):
            _, *others = self.optimizer.rates(lr, step)
            return [SCALE / (1 + self.optimizer.momentum) if self.optimizer.nesterov else SCALE, *others]
        # Adam with sqrt(v) scaled by 0 computes rate * m / eps, where m is (1 - beta1) * g
        return [0.0, SCALE * self.optimizer.eps / (1 - self.optimizer.betas[0]), 0.0]


class Probe(Trainer):
    """A trainer that can be reset, and reports the gradients that its program computes."""

    def start(self, weights: Weights) -> None:
        """Reset to some weights, zero optimizer state and step 0."""
        self._spoiled = None
        self.load_state_dict(weights)
        for name in self._states:
            self._fill(name, 0)
        self.steps = 0

    @property
    def tells_gradients(self) -> bool:
        """Whether an update can be made linear in the gradient: not where Adam has no epsilon."""
        return isinstance(self._optimizer, SGD) or self._optimizer.eps > 0

    def _words(self) -> np.ndarray:
        """The same numbers for each update, so that its gradients repeat."""
        return words_of(self._seed, self.steps % self._accumulate, self._parts)

    def measure(self, weights: Weights, batches: list[Batch]) -> Measured:
        """Run one update: outputs, losses, the gradients as the optimizer sees them (clipped, a coupled weight decay
        added), and the running statistics."""
        self.start(weights)
        outputs = self.predict(batches[0].inputs)
        original, self._optimizer = self._optimizer, _Linear(self._optimizer)  # type: ignore[assignment]
        try:
            losses = tuple(self.step(batch.inputs, batch.target, lr=1.0) for batch in batches)
        finally:
            self._optimizer = original
        after, trained = self.live_weights(), self.program.trained
        gradients: dict[str, np.ndarray | None] = {}
        for name in trained if self.tells_gradients else []:
            moved = (weights[name].astype("float64") - after.get(name, weights[name])) / SCALE
            gradients[name] = moved.astype("float32")
        statistics = {name: after[name] for name in after if name not in trained}
        self.check_frozen(weights, after)
        return Measured(outputs if isinstance(outputs, tuple) else (outputs,), losses, gradients, statistics)

    def update(self, weights: Weights, batches: list[Batch]) -> tuple[tuple[float, ...], Weights]:
        """Run two updates on the same batches; return the losses of the first, and the weights.

        The first has rate 0: it fills the optimizer's state and keeps the weights, so that the gradients repeat.
        """
        self.start(weights)
        losses = tuple(self.step(batch.inputs, batch.target, lr=0.0) for batch in batches)
        for batch in batches:
            self.step(batch.inputs, batch.target, lr=RATE)
        after = self.live_weights()
        self.check_frozen(weights, after)
        return losses, after

    def checked(self, x: Any, y: Any) -> Batch:
        """Check a user's batch as a step does."""
        return Batch(self._inputs.checked(x), keyed(self._inputs.targets(y)))

    def loss(self, weights: Weights, batches: list[Batch]) -> float:
        """The mean training loss of batches, without an update; NaN where a step meets a number that is not finite."""
        self.start(weights)
        try:
            return float(np.mean([self.step(batch.inputs, batch.target, lr=0.0) for batch in batches]))
        except NonFiniteError:
            return math.nan

    def live_weights(self) -> dict[str, np.ndarray]:
        """The weights that a step may change, in PyTorch's layout."""
        return {name: np.array(self._unstored(name)) for name in self._live}

    def check_frozen(self, weights: Weights, after: Weights) -> None:
        """Refuse a program whose step changes anything that is not trained."""
        for name, weight in self._weights.items():
            if name not in self._arrays or weight.trained == STATISTICS:
                continue
            now = after[name] if name in after else self._unstored(name)
            start, what = weights[name], weight.trained
            if isinstance(what, dict):
                others = [i for i in range(start.shape[what["axis"]]) if i not in set(what["indices"])]
                now, start = (np.take(array, others, axis=what["axis"]) for array in (now, start))
            elif what == FULL:
                continue
            if not np.array_equal(now, start, equal_nan=True):
                moved = float(np.nanmax(np.abs(now.astype("float64") - start), initial=0.0))
                raise CheckError(f"a step changes '{name}', which is not trained there, by up to {moved:.3g}")
