"""Summary of the search for one kernel's schedule, from the records of a database."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from scipy.stats import spearmanr

from ..compiler.database import Database, Trial, kernel_key
from ..compiler.rebuild import definitions_of, target_of
from ..compiler.targets import kernel_target
from ..device.program import Program
from ..errors import OptionError
from .cost_model import CostModel
from .space import Space, own_space

MOST_COUNTED = 10_000
"""Points of a space that are counted: walking as many takes a minute or less."""
LEAST_JUDGED = 16
"""Fewest trials by which a cost model is judged: it learns of half of them."""


@dataclass(frozen=True)
class Explanation:
    """The search for one kernel's schedule, as far as it went."""

    name: str
    points: int
    """Points of the space."""
    is_whole: bool
    """Whether all points were counted: else there are more."""
    trials: tuple[Trial, ...]
    """In the order in which they were measured."""
    older: int
    """Trials of other states of the schedules' sources, which say nothing of these."""
    best: Trial | None
    """The fastest that did not fail; None without trials."""
    code: str
    """The best schedule, or else the default one, as TVMScript."""
    model_correlation: float | None
    """Spearman's rank correlation of a cost model's scores with measured speeds, on trials that it did not learn of;
    None where there are too few."""

    @property
    def curve(self) -> list[float]:
        """How many times as fast as the default the best schedule was after each trial."""
        return list(itertools.accumulate((trial.speedup for trial in self.trials), max, initial=1.0))[1:]


def explain(program: Program, database: Database, kernel: str, model: CostModel) -> Explanation:
    """Explain the search for a kernel's schedule. ``kernel`` is the beginning of its name, ``model`` a new cost model.

    Raises
    ------
    OptionError
        The program has no kernel, or several kernels, of that name.
    """
    definitions = definitions_of(program)
    names = [kernel] if kernel in definitions else [name for name in definitions if name.startswith(kernel)]
    if len(names) != 1:
        what, known = ("several kernels begin so", names) if names else ("no kernel is called so", list(definitions))
        raise OptionError(f"kernel={kernel!r}: {what}: {', '.join(known)}")
    func = tvm.ir.load_json(definitions[names[0]])
    target = kernel_target(target_of(program))
    space = own_space(target, func)
    counted = sum(1 for _ in itertools.islice(space.points(), MOST_COUNTED + 1))
    key = kernel_key(func)
    trials = tuple(database.trials.get(key, {}).values())
    best = max((trial for trial in trials if trial.speedup), key=lambda trial: trial.speedup, default=None)
    scheduled = target.schedule(func, {} if best is None else best.decisions)
    return Explanation(
        names[0],
        min(counted, MOST_COUNTED),
        counted <= MOST_COUNTED,
        trials,
        len(database.older.get(key, [])),
        best,
        scheduled.script(),
        rank_correlation(space, [trial for trial in trials if trial.speedup], model),
    )


def rank_correlation(space: Space, trials: Sequence[Trial], model: CostModel) -> float | None:
    """Let a new cost model learn of every other trial, and return the rank correlation of its scores with the measured
    speeds of the rest; None for too few trials, or if it scores all alike."""
    if len(trials) < LEAST_JUDGED:
        return None
    model.update(space, trials[::2])
    judged = trials[1::2]
    scores = model.scores(space, [trial.decisions for trial in judged])
    if np.ptp(scores) == 0:
        return None
    return float(spearmanr(scores, [trial.speedup for trial in judged]).statistic)
