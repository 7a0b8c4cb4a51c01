"""Checks gradients by finite differences: of the program's own loss, where the reference has no gradients; of the
reference's loss, where its gradients are not the program's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CheckError
from .agreement import norm
from .compare import masked
from .measured import Weights

DIRECTIONS = 16
"""Number of directions. Each moves the parameters of one part of the network together."""
LOSS_CHANGE = 0.02
"""Relative change of the loss that a move aims at: far above its rounding, yet nearly linear."""
LARGEST_MOVE = 0.1
"""Largest move of a parameter, relative to its norm."""
TOLERANCE = 0.02
"""Relative difference that curvature and rounding leave between a finite difference and a derivative."""
LOSS_ROUNDING = 1e-5
"""Relative rounding of the loss; a change is measured within the tolerance if it is 1 / ``TOLERANCE`` times as much."""
ZERO_CHANGE = 1e-4
"""Largest relative change of the loss along a direction of zero gradient."""
EXACT_MOVE = 1e-5
"""Move of a parameter where the loss has double precision, relative to its norm and one."""


@dataclass(frozen=True)
class Directions:
    """A comparison of gradients with finite differences along sampled directions.

    A direction is each parameter's normalised gradient plus random noise of the same norm: both a wrong length and a
    wrong direction of a gradient show.
    """

    loss: Callable[[Weights], float]
    trained: Mapping[str, Any]
    """As ``Program.trained``."""
    exact_loss: Callable[[Weights], float | None]
    """The reference's loss in double precision, which settles what a kink near the weights leaves open (a ReLU of few
    images); None where the reference cannot say it."""

    def check(self, weights: Weights, gradients: Mapping[str, np.ndarray], order: tuple[str, ...]) -> dict[str, str]:
        """Compare, and return the parameters that could not be checked, and why.

        Raises
        ------
        CheckError
            The loss changes otherwise than a gradient predicts.
        """
        start = abs(self.loss(weights))
        for name in order:
            if name in gradients and not gradients[name].any():
                self._refuse_zero(weights, name, start)
        reach = {name: self._reach(weights[name], gradients[name], start) for name in order if name in gradients}
        why = "its gradient is too small for finite differences"
        unchecked = {name: why for name, distance in reach.items() if not distance and gradients[name].any()}
        names = [name for name, distance in reach.items() if distance]
        rng = np.random.default_rng(0)
        for part in np.array_split(np.array(names), min(DIRECTIONS, len(names)) or 1):
            moves = {str(name): reach[name] * self._direction(rng, gradients[name], name) for name in part}
            if self._agrees(weights, gradients, moves) or self._settles(weights, gradients, moves):
                continue
            for name, move in reversed(moves.items()):
                self._refuse(weights, gradients, name, move)
        return unchecked

    def _reach(self, weight: np.ndarray, gradient: np.ndarray, loss: float) -> float:
        """The distance to move a parameter; 0 where the change of the loss could not be measured."""
        size = norm(gradient)
        if size == 0 or not np.isfinite(size):
            return 0.0
        distance = min(LOSS_CHANGE * max(loss, LOSS_CHANGE) / size, LARGEST_MOVE * (norm(weight) + LOSS_CHANGE))
        return distance if distance * size > LOSS_ROUNDING * loss / TOLERANCE else 0.0

    def _direction(self, rng: np.random.Generator, gradient: np.ndarray, name: str) -> np.ndarray:
        noise = masked(rng.standard_normal(gradient.shape), self.trained[name])
        return gradient / norm(gradient) + noise / norm(noise)

    def _derivatives(
        self, weights: Weights, gradients: Mapping[str, np.ndarray], moves: Mapping[str, np.ndarray]
    ) -> tuple[float, float]:
        """The derivatives along a direction: by the gradients, and by central differences, extrapolated from two
        lengths."""

        def moved(by: float) -> float:
            shifted = {name: (weights[name] + by * move).astype(weights[name].dtype) for name, move in moves.items()}
            return self.loss({**weights, **shifted})

        coarse, fine = ((moved(length) - moved(-length)) / (2 * length) for length in (1.0, 0.5))
        return _change(gradients, moves), (4 * fine - coarse) / 3

    def _agrees(self, weights: Weights, gradients: Mapping[str, np.ndarray], moves: Mapping[str, np.ndarray]) -> bool:
        predicted, measured = self._derivatives(weights, gradients, moves)
        return _is_near(predicted, measured, gradients, moves)

    def _refuse(self, weights: Weights, gradients: Mapping[str, np.ndarray], name: str, move: np.ndarray) -> None:
        """Refuse the gradient of one parameter, unless shorter moves show that curvature was the difference."""
        for length in (1.0, 0.25, 0.0625):
            predicted, measured = self._derivatives(weights, gradients, {name: length * move})
            if _is_near(predicted, measured, gradients, {name: length * move}):
                return
        raise CheckError(
            f"the gradient of '{name}' is wrong: along one direction the loss changes by {measured / length:.4g} for "
            f"each unit, by finite differences, and by {predicted / length:.4g} as the gradient says"
        )

    def _settles(self, weights: Weights, gradients: Mapping[str, np.ndarray], moves: Mapping[str, np.ndarray]) -> bool:
        """Whether the exact loss changes as the gradients say, on moves too small to meet a kink."""
        small = {name: _small_move(weights, name, move) for name, move in moves.items()}

        def moved(by: float) -> float | None:
            return self.exact_loss({**weights, **{name: weights[name] + by * move for name, move in small.items()}})

        ahead, behind = moved(1.0), moved(-1.0)
        if ahead is None or behind is None:
            return False
        return _is_near(_change(gradients, small), (ahead - behind) / 2, gradients, small)

    def _refuse_zero(self, weights: Weights, name: str, loss: float) -> None:
        """Refuse a gradient of zero where the loss changes."""
        noise = masked(np.random.default_rng(0).standard_normal(weights[name].shape), self.trained[name])
        move = LARGEST_MOVE * (norm(weights[name]) + LOSS_CHANGE) * noise / norm(noise)
        _, measured = self._derivatives(weights, {name: np.zeros_like(move)}, {name: move})
        if abs(measured) > ZERO_CHANGE * loss:
            raise CheckError(f"the gradient of '{name}' is zero, and the loss changes by {measured:.4g} when it moves")


def settles(
    loss: Callable[[Weights], float], weights: Weights, name: str, ours: np.ndarray, theirs: np.ndarray
) -> bool:
    """Whether a loss in double precision says that of two gradients of a parameter the first is right.

    They differ along one direction alone, and along that it is measured. PyTorch's own gradients are not beyond doubt:
    on CPUs that of an evaluated batch norm (2.13) is wrong where what comes back is a transposed view.
    """
    apart = ours.astype("float64") - theirs
    size = norm(apart)
    if not np.isfinite(size) or size == 0:
        return False
    move = _small_move(weights, name, apart)
    ahead, behind = (loss({**weights, name: weights[name] + by * move}) for by in (1.0, -1.0))
    measured, said = (ahead - behind) / 2, float(np.vdot(ours.astype("float64"), move))
    return bool(abs(measured - said) <= TOLERANCE * size * norm(move))


def _change(gradients: Mapping[str, np.ndarray], moves: Mapping[str, np.ndarray]) -> float:
    """The change of the loss by some moves of parameters, as gradients say."""
    return sum(float(np.vdot(gradients[name].astype("float64"), move)) for name, move in moves.items())


def _is_near(
    predicted: float, measured: float, gradients: Mapping[str, np.ndarray], moves: Mapping[str, np.ndarray]
) -> bool:
    """Whether two changes of the loss are equal, up to a share of the largest that such gradients allow."""
    scale = sum(norm(gradients[name]) * norm(move) for name, move in moves.items())
    return bool(abs(predicted - measured) <= TOLERANCE * scale)


def _small_move(weights: Weights, name: str, direction: np.ndarray) -> np.ndarray:
    """A move of a parameter along a direction, for a loss in double precision."""
    return EXACT_MOVE * (1 + norm(weights[name])) * direction.astype("float64") / norm(direction)
