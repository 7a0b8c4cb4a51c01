"""Search of the schedules of all kernels of a program, within a number of trials and a time."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from schedules.decisions import Decisions

from ..compiler.database import Database, Trial, text_of
from ..errors import PockWarning
from .cost_model import CostModel
from .dispatcher import Batch, Dispatcher, Outcome
from .plugins import Maker
from .strategies import STRATEGIES, Strategy
from .tasks import Task, seeds_of

BATCH = 16
"""Schedules that are proposed, built and measured together."""
FINALISTS = 3
"""Fastest schedules of a kernel that are measured again at the end: of many measurements the least is lucky."""
LEAST_GAIN = 1.02
"""Least gain for which a kernel leaves its default: what measurements can tell."""


@dataclass(frozen=True)
class Progress:
    """State of a search."""

    kernel: str
    """Kernel that was measured last, or choice of the step."""
    speedup: float
    """How many times as fast as the default the best of its schedules is so far."""
    trials: int
    """Trials of the program's kernels, or of its step, in the database."""
    failures: int
    """Trials of this run that failed."""
    gain: float
    """How many times as fast the whole step may be, by the best schedules of all kernels so far."""
    seconds_left: float | None


class Search:
    """Search of a program's kernels. It goes on where the database left off, and writes every trial there."""

    def __init__(
        self,
        tasks: Sequence[Task],
        database: Database,
        maker: Maker[Strategy],
        model: CostModel,
        seed: int,
        *,
        keep_going: bool,
    ) -> None:
        self.tasks, self.failures = tasks, 0
        self._measured: set[tuple[str, str]] = set()
        """Schedules that are being measured, by kernel and decisions."""
        self._database, self._model, self._keep_going = database, model, keep_going
        self._rng = np.random.default_rng(seed)
        self._strategies: dict[str, Strategy] = {}
        for task in tasks:
            known = list(database.trials.get(task.key, {}).values())
            if known:
                task.take(known)
            self._strategies[task.key] = self._started(task, maker)

    @property
    def trials(self) -> int:
        """Trials of the program's kernels in the database."""
        return sum(len(self._database.trials.get(task.key, {})) for task in self.tasks)

    @property
    def gain(self) -> float:
        """How many times as fast a step may be, by the best schedules so far."""
        return 1 / (1 - sum(task.share * (1 - 1 / task.speedup) for task in self.tasks))

    def run(
        self, dispatcher: Dispatcher, trials: int | None, seconds: float | None, progress: Callable[[Progress], None]
    ) -> None:
        """Search until ``trials`` are in the database, ``seconds`` are over, or all spaces are exhausted."""
        end = float("inf") if seconds is None else time.monotonic() + seconds
        waiting, batches = list(self.tasks), Counter[str]()

        def proposed() -> Batch | None:
            count = self._count(dispatcher, trials) if time.monotonic() < end else 0
            # A batch that is to wait is of another kernel than those that are measured: their trials will tell more.
            left = [task for task in waiting if dispatcher.idle or not batches[task.key]] if count else []
            # A kernel of which batches are measured may gain nothing by one more.
            for task in sorted(left, key=lambda each: -each.priority / (1 + batches[each.key])):
                points = self._proposed(task, count)
                if points:
                    batches[task.key] += 1
                    return Batch(task, points)
                if not batches[task.key]:  # its strategy waits for no trials
                    waiting.remove(task)
            return None

        for batch, outcome in self._outcomes(dispatcher, proposed):
            task = batch.task
            if isinstance(outcome, Trial):
                left = None if seconds is None else max(0.0, end - time.monotonic())
                best = max([task.speedup, *(trial.speedup for trial in batch.trials)])
                progress(Progress(task.names[0], best, self.trials, self.failures, self.gain, left))
                continue
            batches[task.key] -= 1
            if outcome is not None:
                warnings.warn(f"{task.names[0]} keeps its default schedule: {outcome}", PockWarning, stacklevel=2)
            if task in waiting and (outcome is not None or not batch.trials):
                waiting.remove(task)
            if batch.trials:
                task.take(batch.trials)
                self._strategies[task.key].observe(batch.trials)

    def confirm(self, dispatcher: Dispatcher) -> None:
        """Measure the fastest schedules of each kernel again, and keep the best by that, if any is faster."""
        finalists = []
        for task in self.tasks:
            known = self._database.trials.get(task.key, {}).values()
            first = sorted(known, key=lambda trial: -trial.speedup)[:FINALISTS]
            points = [trial.decisions for trial in first if trial.speedup > LEAST_GAIN]
            finalists += [Batch(task, points)] if points else []
            task.best = None
        left = iter(finalists)
        for batch, outcome in self._outcomes(dispatcher, lambda: next(left, None)):
            if not isinstance(outcome, Trial):
                fastest = max(batch.trials, key=lambda trial: trial.speedup, default=None)
                batch.task.best = fastest if fastest is not None and fastest.speedup > LEAST_GAIN else None

    def warn(self) -> None:
        """Say which errors schedules raised that were decided otherwise."""
        for task in self.tasks:
            for fault, count in task.space.faults.items():
                message = f"{task.names[0]}: {count} points of its space have no schedule: {fault}"
                warnings.warn(message, PockWarning, stacklevel=3)

    def _outcomes(
        self, dispatcher: Dispatcher, proposed: Callable[[], Batch | None]
    ) -> Iterator[tuple[Batch, Outcome]]:
        """Keep devices busy with what is proposed, and yield what happens to it. Trials are written down first."""
        has_ended = True
        while True:
            # Proposals take a core: none are made while schedules are measured, but when a batch begins.
            while (has_ended or dispatcher.idle) and dispatcher.wanted and (batch := proposed()) is not None:
                self._database.add_kernel(batch.task.key, batch.task.record)
                self._measured |= {(batch.task.key, text_of(point)) for point in batch.left}
                dispatcher.submit(batch)
            if not dispatcher.pending:
                return
            batch, outcome = dispatcher.next()
            if isinstance(outcome, Trial):
                self._database.add_trial(batch.task.key, outcome)
                batch.trials.append(outcome)
                self.failures += outcome.failure is not None
            done = [outcome.decisions] if isinstance(outcome, Trial) else batch.left
            self._measured -= {(batch.task.key, text_of(point)) for point in done}
            yield batch, outcome
            has_ended = not isinstance(outcome, Trial)

    def _count(self, dispatcher: Dispatcher, trials: int | None) -> int:
        """Return how many schedules to propose for a batch: all that are wanted share the last ones."""
        if trials is None:
            return BATCH
        left = trials - self.trials - len(self._measured)
        return min(BATCH, math.ceil(max(0, left) / max(1, dispatcher.wanted)))

    def _proposed(self, task: Task, count: int) -> list[Decisions]:
        """Return what a strategy proposes, less what the database knows."""
        known = self._database.trials.get(task.key, {})
        points = self._strategies[task.key].propose(count)
        new = {text_of(point): dict(point) for point in points if text_of(point) not in known}
        return [point for text, point in new.items() if (task.key, text) not in self._measured]

    def _started(self, task: Task, maker: Maker[Strategy]) -> Strategy:
        """Make the strategy of a task, which knows earlier trials. With ``keep_going`` our own takes its place if it
        fails."""
        instead = (lambda: self._started(task, STRATEGIES.maker("evolutionary"))) if self._keep_going else None
        seeds = seeds_of(task, self._database)
        strategy = maker(task.space, seeds, self._model, self._rng, instead=instead)
        strategy.observe(list(self._database.trials.get(task.key, {}).values()))
        return strategy
