"""Gains of kinds of weights, for networks where one weight alone brings too little to be measured."""

from __future__ import annotations

import os
from collections.abc import Callable

from .analysis import Progress, add_costs, analysis
from .candidates import Together, kinds_of
from .contributions import Contributions
from .expected_gains import HEAD
from .task import Task


def analyze_kinds(
    task: Task,
    output: str | os.PathLike[str],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: Progress = lambda _what, _done, _all: None,
    warn: Callable[[str], None] = lambda _text: None,
) -> Contributions:
    """Measure what all weights of a kind bring together, and plan what each of them costs.

    Of a transformer a short run of a single weight is noise, but its embedding and its linear layers, each as a whole,
    are told apart by one run each. Trained, in full on all seeds, are the head, all biases, and with all biases each
    kind of weight, as far as gradients reach. :func:`pock_tvm.choosing.expected_gains.expected_gains` gives each weight
    its share, by its size, of what its kind brought. Arguments and errors are those of :func:`pock_tvm.analyze`.
    """
    with analysis(task, output, scheduler, workers, progress, warn) as under_way:
        found, structure = under_way.found, under_way.structure
        known = add_costs(found, structure, under_way.output, progress)
        most = max((each.biases for each in known), default=0)
        sets = [HEAD, Together(most, ()), *kinds_of(structure, known).values()]
        under_way.run("kinds of weights", sets, task.recipe.epochs, task.seeds, found.kinds)
    return found
