"""Gains of kinds of weights, for networks in which the gain of a single weight is too small to measure."""

from __future__ import annotations

import os
from collections.abc import Callable

from .analysis import Progress, add_costs, open_analysis
from .candidates import WeightSet, weights_by_kind
from .contributions import Contributions
from .expected_gains import HEAD
from .task import Task


def analyze_kinds(
    task: Task,
    output: str | os.PathLike[str],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: Progress = lambda _label, _done, _count: None,
    warn: Callable[[str], None] = lambda _text: None,
) -> Contributions:
    """Measure the gain of all weights of a kind together, and plan the cost of each weight.

    In a transformer the gain of a single weight in a short run is noise; that of all its linear layers, or of its
    embedding, is not. The runs, at full length on all seeds, train the head, all biases, and all biases with each kind
    of weights, as far as gradients reach. :func:`pock_tvm.choosing.expected_gains.expected_gains` splits a kind's gain
    among its weights by size. Arguments and errors are those of :func:`pock_tvm.analyze`.
    """
    with open_analysis(task, output, scheduler, workers, progress, warn) as analysis:
        contributions, structure = analysis.contributions, analysis.structure
        trainable = add_costs(contributions, structure, analysis.output, progress)
        max_biases = max((each.biases for each in trainable), default=0)
        sets = [HEAD, WeightSet(max_biases, ()), *weights_by_kind(structure, trainable).values()]
        analysis.run("kinds of weights", sets, task.recipe.epochs, task.seeds, contributions.kinds)
    return contributions
