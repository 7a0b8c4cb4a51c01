"""Cost models: which of many schedules to measure.

One from outside is an entry point of the group ``pock_tvm.cost_models``, made from TVM's target (:data:`COST_MODELS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tvm
from tvm import s_tir, tirx
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from schedules.decisions import Decisions
from schedules.generic import tune_context

from ..compiler.database import Trial, kernel_key, text_of
from ..device.machine import CORES
from ..errors import PockError
from .plugins import Kind
from .space import Space

MOST_SCORED = 4096
"""Points whose features are kept from when they are scored to when they are measured: a few kilobytes each."""
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
        self._model.extractor = self._extracted = _Extracted()
        self._scored: dict[tuple[str, str], np.ndarray] = {}
        """Features of points that were scored, by kernel and decisions, the latest last: some are measured next."""

    def update(self, space: Space, trials: Sequence[Trial]) -> None:
        """Learn from trials of a kernel."""
        self._extracted.features = self._features(space, [trial.decisions for trial in trials])
        unscheduled = _candidates([space.func]) * len(trials)
        self._model.update(_context(self._target, space), unscheduled, runner_results(trials))

    def scores(self, space: Space, points: Sequence[Decisions]) -> np.ndarray:
        """Return the predicted speeds of points, relative to the fastest."""
        if self._model.booster is None:
            return np.zeros(len(points))
        return self._model._predict(self._features(space, points))

    def _features(self, space: Space, points: Sequence[Decisions]) -> list[np.ndarray]:
        kernel = kernel_key(space.func)
        names = [(kernel, text_of(point)) for point in points]
        new = {name: point for name, point in zip(names, points, strict=True) if name not in self._scored}
        self._scored |= zip(new, features(self._target, space, list(new.values())), strict=True)
        found = [self._scored[name] for name in names]
        for name in list(self._scored)[:-MOST_SCORED]:
            del self._scored[name]
        return found


class _Extracted:
    """Extractor of :attr:`features`, whatever it is given: MetaSchedule's own takes the schedules."""

    features: Sequence[np.ndarray] = ()

    def extract_from(self, _context: ms.TuneContext, _candidates: Sequence[ms.MeasureCandidate]) -> list[Any]:
        """Return the features as tensors."""
        return [tvm.runtime.tensor(each) for each in self.features]


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
    candidates = _candidates([space.scheduled(point) for point in points])
    found = ms.feature_extractor.PerStoreFeature().extract_from(_context(target, space), candidates)
    return [each.numpy().astype("float32") for each in found]


def _context(target: Target, space: Space) -> ms.TuneContext:
    return tune_context(tvm.IRModule({"main": space.func}), target, None, SEED, CORES)


def _candidates(scheduled: Sequence[tirx.PrimFunc]) -> list[ms.MeasureCandidate]:
    operands = ms.arg_info.ArgInfo.from_prim_func(scheduled[0]) if scheduled else []
    # Parts of a partitioned loop define the same variables, which a new schedule refuses.
    modules = (tirx.transform.ConvertSSA()(tvm.IRModule({"main": func})) for func in scheduled)
    return [ms.MeasureCandidate(s_tir.Schedule(module), operands) for module in modules]


class Checked:
    """Cost model from outside, which may return anything."""

    def __init__(self, model: CostModel) -> None:
        self._model = model

    def update(self, space: Space, trials: Sequence[Trial]) -> None:
        """Pass trials on."""
        self._model.update(space, trials)

    def scores(self, space: Space, points: Sequence[Decisions]) -> np.ndarray:
        """Return its scores; raise ValueError if they are not one number for each point."""
        found = np.asarray(self._model.scores(space, points), "float64")
        if found.shape != (len(points),):
            raise ValueError(f"its scores of {len(points)} points have the shape {found.shape}")
        return found


COST_MODELS: Kind[CostModel] = Kind(
    "cost model",
    "cost_model",
    "pock_tvm.cost_models",
    {"xgboost": XGBoostModel, "none": lambda target: NoModel()},
    adapted=lambda _, make: lambda target: Checked(make(target)),
)
"""Cost models. They are made from TVM's target."""
