"""First-order scores: what training a piece would bring, guessed from one pass over the data and no training."""

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
from .analysis import Progress, add_costs, begin
from .candidates import Candidate, candidates, scheme_of
from .contributions import Contributions
from .task import Task
from .worker import compile_task, open_task

MEMORY = 0.9999
"""How slowly Adam forgets a squared gradient here: over one pass, almost not at all."""


def score(
    task: Task,
    output: str | os.PathLike[str],
    *,
    progress: Progress = lambda _what, _done, _all: None,
    warn: Callable[[str], None] = lambda _text: None,
) -> Contributions:
    """Write first-order scores to ``output``, beside contributions that are measured there already; where there are
    none, costs too. What is there is not worked out again."""
    path = Path(output)
    found, structure = begin(task, path, warn)
    if any(each not in found.scores for each in candidates(structure, task.ratios, task.depths)):
        found.scores = first_order_scores(task, progress)
        found.save(path)
    if not found.runs:
        add_costs(found, structure, path, progress)
    return found


def first_order_scores(task: Task, progress: Progress = lambda _what, _done, _all: None) -> dict[Candidate, float]:
    """The root of how fast a step of the task's optimizer lowers the loss, by Taylor's first term, for each candidate.

    With SGD that is the norm of the gradient (its square is the sum of mean squared gradients, the diagonal of the
    empirical Fisher information), with Adam, which moves every number alike, the root of the sum of their roots. The
    root, because a share of a weight brings more than its size says: half of one, where that was measured (MCUNet), six
    tenths of the whole in short runs and nearly all of it in long ones. At a learning rate of zero Adam's second moment
    is that mean, so that one compiled program and one pass over the data say it all.

    Raises
    ------
    DataError
        The data cannot be used.
    """
    model, structure, training, _ = open_task(task)
    program = compile_task(task, Scheme.full(), Adam(betas=(0.9, MEMORY)))
    trainer = Trainer(program)
    batch = program.manifest["inputs"][0]["shape"][0]
    for x, y in training_batches(training, batch, np.random.default_rng(0)):
        trainer.step(x, y, lr=0.0)
        progress("one pass over the data", trainer.steps, len(training) // batch)
    seen = 1 - MEMORY**trainer.steps
    squares = {name: array / seen for name, array in trainer.optimizer_state("exp_avg_sq").items()}
    if task.optimizer["kind"] != "sgd":
        squares = {name: np.sqrt(array) for name, array in squares.items()}

    def total(scheme: Scheme) -> float:
        found = 0.0
        for name, piece in scheme.resolve(model).items():
            chosen = squares[name] if piece is None else np.take(squares[name], piece[1], axis=piece[0])
            found += float(chosen.sum(dtype=np.float64))
        return found

    nothing = total(scheme_of(structure, 0, {}))
    found = {}
    for each in candidates(structure, task.ratios, task.depths):
        alone = scheme_of(structure, 0 if each.weight else each.biases, each.shares)
        found[each] = math.sqrt(max(0.0, total(alone) - nothing))
    return found
