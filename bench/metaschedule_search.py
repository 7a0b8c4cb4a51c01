"""TVM's own evolutionary search over its generic space, as a search strategy of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import s_tir
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from pock_tvm.compiler.database import Trial
from pock_tvm.tuning.cost_model import runner_results
from pock_tvm.tuning.space import Space
from schedules.decisions import Decisions
from schedules.generic import METASCHEDULE, decisions_of, generator
from schedules.spaces import key_of

FAILED = 1e10
"""Seconds by which MetaSchedule's database tells what failed."""


class MetaScheduleSearch:
    """MetaSchedule's `EvolutionarySearch` with its XGBoost model, as `meta_schedule.tune_tir` has them. Candidates are
    told as decisions of the generic space (:mod:`schedules.generic`)."""

    def __init__(self, space: Space, target: Target, trials: int, batch: int, seed: int) -> None:
        mod, sketches, context = generator(space.func, int(target.attrs["num-cores"]), seed + 1)
        self._sketches = sketches.generate_design_space(mod)
        self._strategy = ms.search_strategy.EvolutionarySearch()
        self._strategy._initialize_with_tune_context(context)
        self._database, self._model = ms.database.MemoryDatabase(), ms.cost_model.XGBModel(num_tuning_cores=1)
        self._strategy.pre_tuning(trials, batch, self._sketches, self._database, self._model)
        self._workload = self._database.commit_workload(mod)
        self._context, self._candidates = context, []

    def propose(self, count: int) -> list[Decisions]:
        """Return decisions of MetaSchedule's candidates."""
        self._candidates = list(self._strategy.generate_measure_candidates() or [])
        return [{key_of(METASCHEDULE): True, **self._decisions(each.sch)} for each in self._candidates]

    def observe(self, trials: Sequence[Trial]) -> None:
        """Tell MetaSchedule the times."""
        results = runner_results(trials)
        self._strategy.notify_runner_results(self._candidates, results)
        self._model.update(self._context, self._candidates, results)
        for candidate, result in zip(self._candidates, results, strict=True):
            record = ms.database.TuningRecord(
                candidate.sch.trace,
                self._workload,
                result.run_secs or [FAILED],
                self._context.target,
                candidate.args_info,
            )
            self._database.commit_tuning_record(record)

    def _decisions(self, sch: s_tir.Schedule) -> dict[str, Any]:
        return decisions_of(sch.trace, [sketch.trace for sketch in self._sketches])
