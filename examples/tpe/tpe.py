"""A search strategy, `pock tune --strategy tpe`: Bayesian search by Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna

from pock_tvm.compiler.database import Trial, text_of
from pock_tvm.tuning.cost_model import CostModel
from pock_tvm.tuning.space import Space, new_points
from schedules.decisions import Decisions, Option

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Tpe:
    """Models the choices of good and of bad schedules apart (Bergstra et al., NeurIPS 2011), and draws where good ones
    are more likely. A schedule asks for its choices one by one, as Optuna's define-by-run interface wants it."""

    def __init__(self, space: Space, seeds: Sequence[Decisions], model: CostModel, rng: np.random.Generator) -> None:
        sampler = optuna.samplers.TPESampler(seed=int(rng.integers(2**31)), constant_liar=True)
        self.space, self.study = space, optuna.create_study(sampler=sampler)
        self.running: dict[str, optuna.Trial] = {}
        self.known: set[str] = set()
        for point in [space.default, *seeds]:
            self.want(point)

    def want(self, point: Decisions) -> None:
        """Let Optuna ask for a point before it draws any."""
        indices: dict[str, int] = {}

        def decide(name: str, options: Sequence[Option], default: Option) -> Option:
            indices[parameter(name, options)] = list(options).index(point[name])
            return point[name]

        self.space.walk(decide)
        self.study.enqueue_trial(indices)

    def propose(self, count: int) -> list[Decisions]:
        """Ask for new schedules. Until their times are known Optuna takes them for slow ones."""
        return new_points(self.draw, self.known, count)

    def draw(self) -> Decisions | None:
        """Ask for one schedule; None if there is no such."""
        trial = self.study.ask()
        point = self.space.walk(
            lambda name, options, _: options[trial.suggest_int(parameter(name, options), 0, len(options) - 1)]
        )
        if point is None or text_of(point) in self.known:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return None
        self.running[text_of(point)] = trial
        return point

    def observe(self, trials: Sequence[Trial]) -> None:
        """Tell the times, relative to the default schedule's. Trials of earlier searches were not asked for."""
        for trial in trials:
            self.known.add(text_of(trial.decisions))
            asked = self.running.pop(text_of(trial.decisions), None)
            if asked is not None and trial.speedup:
                self.study.tell(asked, 1 / trial.speedup)
            elif asked is not None:
                self.study.tell(asked, state=optuna.trial.TrialState.FAIL)


def parameter(name: str, options: Sequence[Option]) -> str:
    """Name a choice. Its options depend on earlier ones: as many others are another parameter to Optuna."""
    return f"{name} of {len(options)}"
