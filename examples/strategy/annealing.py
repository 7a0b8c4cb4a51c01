"""A search strategy, `pock tune --strategy annealing`: a walker that accepts slower schedules less and less often."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pock_tvm.compiler.database import Trial
from pock_tvm.tuning.cost_model import CostModel
from pock_tvm.tuning.space import Space
from schedules.decisions import Decisions

COOLING = 0.97
"""Factor of the temperature after each trial."""


class Annealing:
    """Simulated annealing (Kirkpatrick et al., Science 220, 1983) over the decisions of one kernel's schedule."""

    def __init__(self, space: Space, seeds: Sequence[Decisions], model: CostModel, rng: np.random.Generator) -> None:
        self.space, self.rng = space, rng
        self.at, self.speedup, self.temperature = space.default, 1.0, 0.3

    def propose(self, count: int) -> list[Decisions]:
        """Propose neighbours of where the walker is."""
        drawn = (self.space.mutate(self.at, self.rng) for _ in range(count))
        return [point for point in drawn if point is not None]

    def observe(self, trials: Sequence[Trial]) -> None:
        """Move to a faster schedule always, to a slower one as the temperature allows."""
        for trial in trials:
            if self.rng.random() < math.exp(min(0.0, trial.speedup - self.speedup) / self.temperature):
                self.at, self.speedup = trial.decisions, trial.speedup
            self.temperature *= COOLING
