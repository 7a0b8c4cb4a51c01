"""Cost models: which of many schedules to measure.

One from outside is an entry point of the group ``pock_tvm.cost_models``, made from TVM's target (:data:`COST_MODELS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tvm
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from schedules.decisions import Decisions
from schedules.generic import tune_context

from ..compiler.database import Trial
from ..errors import PockError
from .plugins import Kind
from .space import Space

SEED = 0
"""Seed of what MetaSchedule would search by itself."""


class CostModel(Protocol):
    """Scores schedules. One model learns from the trials of all kernels of a program."""

    def update(self, space: Space, trials: Sequence[Trial]) -> None:
        """Learn from trials of a kernel."""

    def scores(self, space: Space, points: Sequence[Decisions]) -> np.ndarray:
        """Return a number for each point of a kernel's space, higher for a faster schedule; equal ones if nothing is
        known yet."""


class NoModel:
    """Knows nothing, and scores all alike."""

    def update(self, space: Space, trials: Sequence[Trial]) -> None:
        """Learn nothing."""

    def scores(self, space: Space, points: Sequence[Decisions]) -> np.ndarray:
        """Return zeros."""
        return np.zeros(len(points))


class XGBoostModel:
    """MetaSchedule's model: gradient-boosted trees on features of the stores in a scheduled kernel's loops.

    Raises
    ------
    PockError
        The package ``xgboost`` is missing.
    """

    def __init__(self, target: Target) -> None:
        try:
            import xgboost  # noqa: F401 - MetaSchedule imports it when the model first learns
        except ImportError as error:
            raise PockError(
                "the cost model needs XGBoost: pip install 'pock-tvm[tune]', or take the cost model 'none'"
            ) from error
        self._target = target
        self._model = ms.cost_model.XGBModel(num_tuning_cores=1)

    def update(self, space: Space, trials: Sequence[Trial]) -> None:
        """Learn from trials of a kernel."""
        points = [trial.decisions for trial in trials]
        self._model.update(_context(self._target, space), _candidates(space, points), runner_results(trials))

    def scores(self, space: Space, points: Sequence[Decisions]) -> np.ndarray:
        """Return the predicted speeds of points, relative to the fastest."""
        if self._model.booster is None:
            return np.zeros(len(points))
        return self._model._predict(features(self._target, space, points))


def runner_results(trials: Sequence[Trial]) -> list[ms.runner.RunnerResult]:
    """Return trials as MetaSchedule's models and searches take them."""
    return [
        ms.runner.RunnerResult(None if trial.seconds is None else [trial.seconds], trial.failure) for trial in trials
    ]


def features(target: Target, space: Space, points: Sequence[Decisions]) -> list[np.ndarray]:
    """Return MetaSchedule's features of points: a float32 row for each store of the scheduled kernel.

    Rows have 164 numbers: arithmetic, vectors, loops and memory accesses around the store
    (``tvm.s_tir.meta_schedule.feature_extractor.PerStoreFeature``).
    """
    found = ms.feature_extractor.PerStoreFeature().extract_from(_context(target, space), _candidates(space, points))
    return [each.numpy().astype("float32") for each in found]


def _context(target: Target, space: Space) -> ms.TuneContext:
    return tune_context(tvm.IRModule({"main": space.func}), target, None, SEED)


def _candidates(space: Space, points: Sequence[Decisions]) -> list[ms.MeasureCandidate]:
    operands = ms.arg_info.ArgInfo.from_prim_func(space.func)
    modules = (tvm.IRModule({"main": space.target.schedule(space.func, point)}) for point in points)
    return [ms.MeasureCandidate(s_tir.Schedule(module), operands) for module in modules]


COST_MODELS: Kind[CostModel] = Kind(
    "cost model", "cost_model", "pock_tvm.cost_models", {"xgboost": XGBoostModel, "none": lambda target: NoModel()}
)
"""Cost models. They are made from TVM's target."""
