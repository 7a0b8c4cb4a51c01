"""First-order scores: gains predicted from gradients, by one pass over the data and no training."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..device.optimizers import Adam
from ..device.trainer import Trainer
from ..schemes.scheme import Scheme
from ..training.data import training_batches
from .analysis import Progress, add_costs, start_or_resume
from .candidates import Candidate, candidates, scheme_of
from .contributions import Contributions
from .task import Task
from .worker import compile_task, open_task

BETA2 = 0.9999
"""Decay of Adam's second moment: over one pass it weighs all batches almost equally."""


def score(
    task: Task,
    output: str | os.PathLike[str],
    *,
    progress: Progress = lambda _label, _done, _count: None,
    warn: Callable[[str], None] = lambda _text: None,
) -> Contributions:
    """Write first-order scores to ``output``, beside contributions that it may hold, and costs if it holds none.

    What ``output`` holds already is not computed again.
    """
    path = Path(output)
    contributions, structure = start_or_resume(task, path, warn)
    if any(each not in contributions.scores for each in candidates(structure, task.ratios, task.depths)):
        contributions.scores = first_order_scores(task, progress)
        contributions.save(path)
    if not contributions.runs:
        add_costs(contributions, structure, path, progress)
    return contributions


def first_order_scores(task: Task, progress: Progress = lambda _label, _done, _count: None) -> dict[Candidate, float]:
    """Score each candidate by the square root of the first-order decrease in loss of a step of the task's optimizer.

    With SGD the decrease is the sum of mean squared gradients (the diagonal of the empirical Fisher information); with
    Adam, which moves every element by about the same step, the sum of their square roots. The square root, because a
    part of a weight gains more than its share: half of a weight, where that was measured (MCUNet), six tenths of the
    whole in short runs and nearly all of it in long ones. At a learning rate of zero Adam's second moment is the mean
    squared gradient, so one compiled program and one pass over the data suffice.

    Raises
    ------
    DataError
        The data cannot be used.
    """
    model, structure, training, _ = open_task(task)
    program = compile_task(task, Scheme.full(), Adam(betas=(0.9, BETA2)))
    trainer = Trainer(program)
    batch = program.manifest["inputs"][0]["shape"][0]
    for x, y in training_batches(training, batch, np.random.default_rng(0)):
        trainer.step(x, y, lr=0.0)
        progress("one pass over the data", trainer.steps, len(training) // batch)
    bias_correction = 1 - BETA2**trainer.steps
    decreases = {name: array / bias_correction for name, array in trainer.optimizer_state("exp_avg_sq").items()}
    if task.optimizer["kind"] != "sgd":
        decreases = {name: np.sqrt(array) for name, array in decreases.items()}

    def total(scheme: Scheme) -> float:
        result = 0.0
        for name, part in scheme.resolve(model).items():
            array = decreases[name]
            trained = array if part is None else np.take(array, part.indices, axis=part.axis)
            result += float(trained.sum(dtype=np.float64))
        return result

    head = total(scheme_of(structure, 0, {}))
    scores = {}
    for each in candidates(structure, task.ratios, task.depths):
        alone = scheme_of(structure, 0 if each.weight else each.biases, each.ratios)
        scores[each] = math.sqrt(max(0.0, total(alone) - head))
    return scores
