"""A cost model, `pock tune --cost-model least_squares`: a linear model of the logarithm of a schedule's speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm.target import Target

from pock_tvm.compiler.database import Trial
from pock_tvm.tuning.cost_model import features
from pock_tvm.tuning.space import Space
from schedules.decisions import Decisions

RIDGE = 1.0
"""Weight of small coefficients against a small error."""


class LeastSquares:
    """Ridge regression on the sum of the features of a kernel's stores."""

    def __init__(self, target: Target) -> None:
        self.target, self.rows, self.speeds = target, [], []

    def update(self, space: Space, trials: Sequence[Trial]) -> None:
        """Learn of trials that did not fail."""
        good = [trial for trial in trials if trial.speedup]
        self.rows += list(self.summed(space, [trial.decisions for trial in good]))
        self.speeds += [np.log(trial.speedup) for trial in good]

    def scores(self, space: Space, points: Sequence[Decisions]) -> np.ndarray:
        """Predict speeds."""
        if not self.rows:
            return np.zeros(len(points))
        known, speeds = np.stack(self.rows), np.array(self.speeds)
        mean = known.mean(axis=0)
        gram = (known - mean) @ (known - mean).T + RIDGE * np.eye(len(known))
        return (self.summed(space, points) - mean) @ (known - mean).T @ np.linalg.solve(gram, speeds - speeds.mean())

    def summed(self, space: Space, points: Sequence[Decisions]) -> np.ndarray:
        """Return a row of features for each point."""
        return np.array([each.sum(axis=0) for each in features(self.target, space, points)])
