"""Gradients against finite differences of the program's own loss, where no reference knows gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CheckError
from .agreement import norm
from .compare import masked
from .measured import Weights

GROUPS = 16
"""Directions: each moves the parameters of one part of the network together."""
CHANGE = 0.02
"""How far the loss is to move, relative to it: much more than its rounding, and little enough to be nearly linear."""
FARTHEST = 0.1
"""How far a weight moves at most, relative to its size."""
TOLERANCE = 0.02
"""Relative: what curvature and rounding leave between a difference and a derivative."""
RESOLVED = 1e-5
"""The least movement of the loss, relative to it, that single precision tells to within the tolerance."""
SILENCE = 1e-4
"""Relative: what a loss may change when something moves whose gradient is zero."""


@dataclass(frozen=True)
class Directions:
    """Compares derivatives along sampled directions.

    A direction is the gradient of each parameter and as long a random one, so that a wrong length shows and a wrong
    direction does, too.
    """

    loss: Callable[[Weights], float]
    trained: Mapping[str, Any]
    """As ``Program.trained``."""

    def check(self, weights: Weights, gradients: Mapping[str, np.ndarray], order: tuple[str, ...]) -> dict[str, str]:
        """The parameters that could not be told, and why.

        Raises
        ------
        CheckError
            The loss moves otherwise than a gradient says.
        """
        start = abs(self.loss(weights))
        for name in order:
            if name in gradients and not gradients[name].any():
                self._refuse_silence(weights, name, start)
        reach = {name: self._reach(weights[name], gradients[name], start) for name in order if name in gradients}
        why = "its gradient is too small for finite differences"
        unchecked = {name: why for name, far in reach.items() if not far and gradients[name].any()}
        names = [name for name, far in reach.items() if far]
        rng = np.random.default_rng(0)
        for part in np.array_split(np.array(names), min(GROUPS, len(names)) or 1):
            moves = {str(name): reach[name] * self._direction(rng, gradients[name], name) for name in part}
            if self._agrees(weights, gradients, moves):
                continue
            for name, move in reversed(moves.items()):
                self._refuse(weights, gradients, name, move)
        return unchecked

    def _reach(self, weight: np.ndarray, gradient: np.ndarray, loss: float) -> float:
        """How far a parameter moves; 0 where the loss would not tell."""
        size = norm(gradient)
        if size == 0 or not np.isfinite(size):
            return 0.0
        far = min(CHANGE * max(loss, CHANGE) / size, FARTHEST * (norm(weight) + CHANGE))
        return far if far * size > RESOLVED * loss / TOLERANCE else 0.0

    def _direction(self, rng: np.random.Generator, gradient: np.ndarray, name: str) -> np.ndarray:
        noise = masked(rng.standard_normal(gradient.shape), self.trained[name])
        return gradient / norm(gradient) + noise / norm(noise)

    def _derivatives(
        self, weights: Weights, gradients: Mapping[str, np.ndarray], moves: Mapping[str, np.ndarray]
    ) -> tuple[float, float]:
        """Along a direction: by the gradients, and by differences of two lengths, extrapolated to none."""

        def moved(by: float) -> float:
            shifted = {name: (weights[name] + by * move).astype(weights[name].dtype) for name, move in moves.items()}
            return self.loss({**weights, **shifted})

        coarse, fine = ((moved(length) - moved(-length)) / (2 * length) for length in (1.0, 0.5))
        told = sum(float(np.vdot(gradients[name].astype("float64"), move)) for name, move in moves.items())
        return told, (4 * fine - coarse) / 3

    def _agrees(self, weights: Weights, gradients: Mapping[str, np.ndarray], moves: Mapping[str, np.ndarray]) -> bool:
        told, found = self._derivatives(weights, gradients, moves)
        scale = sum(norm(gradients[name]) * norm(move) for name, move in moves.items())
        return bool(abs(told - found) <= TOLERANCE * scale)

    def _refuse(self, weights: Weights, gradients: Mapping[str, np.ndarray], name: str, move: np.ndarray) -> None:
        """Refuse the gradient of one parameter, unless shorter moves show that it was curvature."""
        for length in (1.0, 0.25, 0.0625):
            told, found = self._derivatives(weights, gradients, {name: length * move})
            if abs(told - found) <= TOLERANCE * norm(gradients[name]) * norm(length * move):
                return
        raise CheckError(
            f"the gradient of '{name}' is wrong: along one direction the loss changes by {found / length:.4g} for each "
            f"unit, by finite differences, and by {told / length:.4g} as the gradient says"
        )

    def _refuse_silence(self, weights: Weights, name: str, loss: float) -> None:
        """Refuse a gradient of zero where the loss changes."""
        noise = masked(np.random.default_rng(0).standard_normal(weights[name].shape), self.trained[name])
        move = FARTHEST * (norm(weights[name]) + CHANGE) * noise / norm(noise)
        _, found = self._derivatives(weights, {name: np.zeros_like(move)}, {name: move})
        if abs(found) > SILENCE * loss:
            raise CheckError(f"the gradient of '{name}' is zero, and the loss changes by {found:.4g} when it moves")
