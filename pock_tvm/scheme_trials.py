"""Fine-tunes whole schemes to see which of them is best: gains of pieces, measured alone, do not add up."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .analysis import Progress, measure
from .contribution import Task
from .executors import Workers
from .scheme import Scheme


def trial_scores(task: Task, schemes: Sequence[Scheme], progress: Progress) -> list[float]:
    """What each scheme comes to on a task's validation data, fine-tuned as the task says: the mean over its seeds, and
    minus infinity where the loss ceased to be a number.

    Nothing is compiled for a budget: micro-batches and recomputation change no update.
    """
    runs = [(number, seed) for number in range(len(schemes)) for seed in range(task.seeds)]
    scores: list[list[float]] = [[] for _ in schemes]
    with tempfile.TemporaryDirectory() as folder, Workers() as pool:
        jobs = [(task, schemes[number].rules, task.recipe.epochs, seed, Path(folder)) for number, seed in runs]
        for done, (job, measured) in enumerate(pool.run(measure, jobs), 1):
            scores[runs[job][0]].append(-math.inf if measured.score is None else measured.score)
            progress("trying schemes", done, len(jobs))
    return [statistics.mean(each) for each in scores]
