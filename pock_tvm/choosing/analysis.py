"""``pock.analyze``: fine-tunes parts of a network one by one, and measures gains and costs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.training_options import FLOAT32
from ..device.arguments import one_of, require
from ..device.files import check_folder
from ..errors import ContributionError
from ..frontend.structure import Structure
from ..training.data import digests
from .candidates import Candidate, WeightSet, candidates, scheme_of
from .contributions import Contributions
from .costs import Cost
from .expected_gains import growing_sets
from .fingerprint import fingerprint
from .runs import Run
from .task import Task
from .worker import measure, open_model, open_task, planned_cost
from .workers import Workers

REDUCTION_FACTOR = 3
"""Successive halving promotes one candidate in three from a rung to the next."""
RUNG_EPOCHS = (1 / 4, 1 / 2, 1)
"""Length of the runs of each rung, as a share of the task's epochs."""
BIAS_COUNTS = 8
"""Number of bias counts, evenly spaced, that are trained at full length whatever their rank."""
Progress = Callable[[str, int, int], None]
"""Callback with a label, the number of steps done, and the number of all steps."""


def analyze(
    task: Task,
    output: str | os.PathLike[str],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: Progress = lambda _label, _done, _count: None,
    warn: Callable[[str], None] = lambda _text: None,
) -> Contributions:
    """Measure the contribution of every candidate of a network, by successive halving.

    All candidates are trained for a quarter of the epochs on one seed, the best third of them for half of the epochs on
    two seeds, the best third of those for all epochs on all seeds. Some numbers of biases, evenly spaced, reach the
    last rung whatever their rank. Then growing sets of the best weights are trained together at full length. ``output``
    is written after each run; an interrupted analysis resumes from it. ``scheduler`` is the address of a Dask
    scheduler, whose workers must see the same files; without one, ``workers`` local processes do the runs, one a core
    by default. Results do not depend on the workers.

    Raises
    ------
    ContributionError
        ``output`` holds another analysis.
    DataError
        The data cannot be used.
    """
    with open_analysis(task, output, scheduler, workers, progress, warn) as analysis:
        contributions = analysis.contributions
        group = candidates(analysis.structure, task.ratios, task.depths)

        def halve(what: str, group: Sequence[Candidate], base: Candidate, always: Sequence[Candidate] = ()) -> None:
            for rung, (epochs, seeds) in enumerate(rungs(task)):
                label = f"{what}, rung {rung + 1} of {len(RUNG_EPOCHS)}"
                analysis.run(label, [base, *group], epochs, seeds, contributions.runs)
                group = _promoted(contributions, group, base, epochs, always)

        numbers = [each for each in group if not each.weight]
        # Gains change slowly with the number: the others are interpolated (:mod:`pock_tvm.choosing.expected_gains`).
        halve("biases", numbers, numbers[0], (*numbers[:: max(1, len(numbers) // BIAS_COUNTS)], numbers[-1]))
        base = contributions.base()
        halve("weights", [replace(each, biases=base.biases) for each in group if each.weight], base)
        sets = growing_sets(contributions)
        analysis.run("weights together", sets, task.recipe.epochs, task.seeds, contributions.trials)
    return contributions


@dataclass(frozen=True)
class Analysis:
    """An analysis in progress: measurements so far, and the workers."""

    contributions: Contributions
    structure: Structure
    output: Path
    pool: Workers
    progress: Progress

    @property
    def folder(self) -> Path:
        """Folder of compiled programs, removed at the end of the analysis."""
        return self.output.with_suffix(".programs")

    def run(
        self, label: str, group: Iterable[Candidate | WeightSet], epochs: float, seeds: int, results: list[Run]
    ) -> None:
        """Run each candidate of a group on each seed, unless ``results`` has the run; append and save each result."""
        runs = list(dict.fromkeys((candidate, epochs, seed) for candidate in group for seed in range(seeds)))
        done = {(run.candidate, run.epochs, run.seed) for run in results}
        missing = [run for run in runs if run not in done]
        jobs = [
            (
                self.contributions.task,
                scheme_of(self.structure, each.biases, each.ratios).rules,
                epochs,
                seed,
                self.folder,
            )
            for each, epochs, seed in missing
        ]
        self.progress(label, len(runs) - len(missing), len(runs))
        for count, (number, result) in enumerate(self.pool.run(measure, jobs), 1):
            candidate, epochs, seed = missing[number]
            results.append(Run(candidate, epochs, seed, result.score, result.loss))
            if isinstance(candidate, Candidate) and result.cost is not None:
                self.contributions.costs[candidate] = result.cost
            self.contributions.save(self.output)
            self.progress(label, len(runs) - len(missing) + count, len(runs))


@contextlib.contextmanager
def open_analysis(
    task: Task,
    output: str | os.PathLike[str],
    scheduler: str | None,
    workers: int | None,
    progress: Progress,
    warn: Callable[[str], None],
) -> Iterator[Analysis]:
    """Start or resume an analysis; on success mark it finished, save it, and remove its programs."""
    path = Path(output).resolve()
    contributions, structure = start_or_resume(task, path, warn)
    with Workers(scheduler, workers) as pool:
        analysis = Analysis(contributions, structure, path, pool, progress)
        yield analysis
    contributions.finished = True
    contributions.save(path)
    shutil.rmtree(analysis.folder, ignore_errors=True)


def rungs(task: Task) -> list[tuple[float, int]]:
    """List the rungs of successive halving as ``(epochs, number of seeds)``."""
    return [(task.recipe.epochs * share, min(task.seeds, rung + 1)) for rung, share in enumerate(RUNG_EPOCHS[:-1])] + [
        (task.recipe.epochs, task.seeds)
    ]


def start_or_resume(task: Task, output: Path, warn: Callable[[str], None]) -> tuple[Contributions, Structure]:
    """Check model and data, and load the measurements in ``output``, or start empty ones.

    Raises
    ------
    ContributionError
        ``output`` was measured on another model, other data or with other settings.
    """
    require("what is analysed", task, one_of("a pock.Task", Task))
    check_folder(output)
    model, structure, training, validation = open_task(task)
    training_digests, validation_digests = digests(training), digests(validation)
    known = set(training_digests)
    shared = sum(digest in known for digest in validation_digests)
    if shared:
        warn(
            f"{shared} of {len(validation)} validation samples are training samples too: gains will look larger than "
            "they are"
        )
    targets = [np.asarray(samples.targets).tobytes() for samples in (training, validation)]
    data = hashlib.sha256(b"".join([*training_digests, *validation_digests, *targets])).hexdigest()
    rows = {name: list(channels.read) for name, channels in structure.channels.items() if channels.read}
    contributions = Contributions(task, fingerprint(model), data, rows=rows)
    if output.exists():
        before = Contributions.load(output)
        before.check_model(model)
        differing = [name for name, value in task.settings().items() if before.task.settings().get(name) != value]
        if differing:
            name = differing[0]
            raise ContributionError(
                f"'{output}' was measured with {name} {before.task.settings()[name]}, not {task.settings()[name]}: "
                "name another output, or remove that file"
            )
        if before.data != data:
            raise ContributionError(f"'{output}' was measured on other data: name another output, or remove that file")
        contributions = replace(before, task=task, rows=rows)
    return contributions, structure


def _promoted(
    contributions: Contributions,
    group: Sequence[Candidate],
    base: Candidate,
    epochs: float,
    always: Sequence[Candidate],
) -> list[Candidate]:
    """Select the candidates of the next rung, in the group's order: the best third after ``epochs``, and ``always``."""
    gains = contributions.gains(group, base, epochs)
    ranked = sorted(gains, key=lambda candidate: -gains[candidate].mean)
    promoted = {*ranked[: -(-len(ranked) // REDUCTION_FACTOR)], *always}
    return [candidate for candidate in group if candidate in promoted]


def add_costs(contributions: Contributions, structure: Structure, output: Path, progress: Progress) -> list[Candidate]:
    """Plan the candidates whose cost is unknown, and save; return the trainable candidates.

    Nothing is trainable behind an operator without a gradient rule. Weights then come with as many of the last biases
    as are trainable.
    """
    task = contributions.task

    def planned(group: Iterable[Candidate]) -> list[Candidate]:
        missing = [each for each in group if each not in contributions.costs]
        contributions.costs |= planned_costs(task, missing, None, progress, contributions.rows)
        return [each for each in group if each in contributions.costs]

    group = candidates(structure, task.ratios, task.depths)
    trainable = planned(group)
    max_biases = max((each.biases for each in trainable), default=0)
    if any(each.biases > max_biases for each in group):
        trainable = planned(dict.fromkeys(replace(each, biases=min(each.biases, max_biases)) for each in group))
    contributions.save(output)
    return trainable


def planned_costs(
    task: Task,
    group: Iterable[Candidate],
    target: Any = None,
    progress: Progress = lambda _label, _done, _count: None,
    rows: Mapping[str, Sequence[int]] | None = None,
    frozen: str = FLOAT32,
) -> dict[Candidate, Cost]:
    """Compute the costs of candidates and of the biases that they are compared to, from plans without a build.

    Candidates are left out that cannot be trained, or have no frozen layers of the type ``frozen``. ``rows`` as in
    :class:`pock_tvm.Contributions`.
    """
    missing = list(dict.fromkeys(candidate for each in group for candidate in (each, Candidate(each.biases))))
    costs: dict[Candidate, Cost] = {}
    if not missing:
        return costs
    with Workers() as pool:
        structure = open_model(task)[1].reading(rows or {})
        jobs = [(task, scheme_of(structure, each.biases, each.ratios).rules, target, frozen) for each in missing]
        for done, (number, cost) in enumerate(pool.run(planned_cost, jobs), 1):
            if cost is not None:
                costs[missing[number]] = cost
            progress("planning candidates", done, len(missing))
    return {each: costs[each] for each in missing if each in costs}  # workers end in any order
