"""Search strategies: which schedules of a kernel to measure next.

One from outside is an entry point of the group ``pock_tvm.strategies``, made like ours (:data:`STRATEGIES`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from schedules.decisions import Decisions

from ..compiler.database import Trial, text_of
from .cost_model import CostModel
from .plugins import Kind
from .space import Space, new_points


class Strategy(Protocol):
    """Search of one kernel's space. Proposals need not be new or complete: known ones are left out."""

    def propose(self, count: int) -> Sequence[Decisions]:
        """Return up to ``count`` decisions to measure; none if the search is over."""

    def observe(self, trials: Sequence[Trial]) -> None:
        """Learn of trials: those of what it proposed, and at first those of earlier searches."""


class Random:
    """Draws every choice uniformly."""

    def __init__(self, space: Space, seeds: Sequence[Decisions], model: CostModel, rng: np.random.Generator) -> None:
        self._space, self._rng = space, rng
        self._known: set[str] = set()

    def propose(self, count: int) -> list[Decisions]:
        """Return points that were not proposed before."""
        return new_points(lambda: self._space.sample(self._rng), self._known, count)

    def observe(self, trials: Sequence[Trial]) -> None:
        """Remember what was measured already."""
        self._known |= {text_of(trial.decisions) for trial in trials}


PARENTS = 12
"""Fastest schedules whose relatives are tried."""
POOL = 2
"""Points that are scored for each that is measured: scoring one takes a fifth of measuring it."""
MUTATED, CROSSED = 0.6, 0.2
"""Shares of relatives of the parents in a pool; the rest is drawn at random."""
EXPLORED = 0.2
"""Share of a batch that is taken whatever its scores are."""


class Evolutionary:
    """Mutates and crosses the fastest schedules, and measures what the cost model scores best of them.

    It starts with the default, with what was good elsewhere, and with random points.
    """

    def __init__(self, space: Space, seeds: Sequence[Decisions], model: CostModel, rng: np.random.Generator) -> None:
        self._space, self._model, self._rng = space, model, rng
        self._first = [space.default, *seeds]
        self._known: set[str] = set()
        self._measured: list[Trial] = []

    def propose(self, count: int) -> list[Decisions]:
        """Return the best-scored of a pool of new points."""
        first = iter([point for point in self._first if text_of(point) not in self._known])
        chosen = new_points(lambda: next(first, None), self._known, count)
        self._first = []
        pool_size = POOL * (count - len(chosen))
        drawn = new_points(self._draw, set(self._known), pool_size) if pool_size else []
        ranked = self._ranked(drawn)
        explored = round(EXPLORED * count) if len(ranked) > count else 0
        chosen += ranked[: count - len(chosen) - explored]
        rest = [point for point in drawn if point not in chosen]
        chosen += rest[: count - len(chosen)]
        self._known |= {text_of(point) for point in chosen}
        return chosen

    def observe(self, trials: Sequence[Trial]) -> None:
        """Take trials as parents, and teach them to the cost model."""
        trials = [trial for trial in trials if trial not in self._measured]
        self._known |= {text_of(trial.decisions) for trial in trials}
        self._measured = sorted([*self._measured, *trials], key=lambda trial: -trial.speedup)
        if trials:
            self._model.update(self._space, trials)

    def _ranked(self, points: Sequence[Decisions]) -> list[Decisions]:
        if not points:
            return []
        order = np.argsort(-self._model.scores(self._space, points), kind="stable")
        return [points[at] for at in order]

    def _draw(self) -> Decisions | None:
        parents = [trial.decisions for trial in self._measured[:PARENTS] if trial.speedup]
        kind = self._rng.random()
        if not parents or kind > MUTATED + CROSSED:
            return self._space.sample(self._rng)
        one, other = (parents[int(self._rng.integers(len(parents)))] for _ in range(2))
        if kind < MUTATED:
            return self._space.mutate(one, self._rng)
        return self._space.cross(one, other, self._rng)


class Completed:
    """Strategy from outside, whose decisions need not be complete."""

    def __init__(self, strategy: Strategy, space: Space) -> None:
        self._strategy, self._space = strategy, space

    def propose(self, count: int) -> list[Decisions]:
        """Return what it proposes, with a decision for every choice."""
        return [self._space.completed(point) for point in self._strategy.propose(count)]

    def observe(self, trials: Sequence[Trial]) -> None:
        """Pass trials on."""
        self._strategy.observe(trials)


STRATEGIES: Kind[Strategy] = Kind(
    "search strategy",
    "strategy",
    "pock_tvm.strategies",
    {"evolutionary": Evolutionary, "random": Random},
    adapted=lambda _, make: lambda space, *args: Completed(make(space, *args), space),
)
"""Search strategies. They are made from a kernel's space, decisions that were good elsewhere (repaired to fit), the
cost model that all kernels share, and random numbers."""
