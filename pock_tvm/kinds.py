"""Gains of kinds of weights, for networks where one weight alone brings too little to be measured."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .analysis import Progress, begin, do_runs
from .contribution import Contributions, Task, Together, kinds_of
from .executors import Workers
from .scores import score


def analyze_kinds(
    task: Task,
    output: str | os.PathLike[str],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: Progress = lambda _what, _done, _all: None,
    warn: Callable[[str], None] = lambda _text: None,
) -> Contributions:
    """Take first-order scores, and measure what all weights of a kind bring together.

    Scores know nothing of what generalises: they put an embedding far below linear layers that bring no more for
    their size. Of a transformer a short run of a single weight is noise, but its embedding and its linear layers,
    each as a whole, are told apart by one run each. Trained, in full on all seeds, are the head, all biases, and
    with all biases each kind of weight. :func:`pock_tvm.gains.expected_gains` gives each weight its share, by its
    score, of what its kind brought. Arguments and errors are those of :func:`pock_tvm.analyze`.
    """
    output = Path(output).resolve()
    score(task, output, progress=progress, warn=warn)
    found, structure = begin(task, output, lambda _text: None)
    folder = output.with_suffix(".programs")
    sets = list(kinds_of(structure, task.ratios).values())
    most = Together(max(each.biases for each in found.scores), ())
    runs = [(each, task.recipe.epochs, seed) for each in (Together(0, ()), most, *sets) for seed in range(task.seeds)]
    with Workers(scheduler, workers) as pool:
        do_runs(found, structure, runs, found.kinds, folder, output, pool, "kinds of weights", progress)
    found.finished = True
    found.save(output)
    shutil.rmtree(folder, ignore_errors=True)
    return found
