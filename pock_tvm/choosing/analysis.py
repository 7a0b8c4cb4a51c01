"""``pock.analyze``: fine-tunes each piece of a network alone, and measures what it brings and what it takes."""

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

from ..device.arguments import one_of, require
from ..device.files import check_folder
from ..errors import ContributionError
from ..frontend.structure import Structure
from ..training.data import digests
from .candidates import Candidate, Together, candidates, scheme_of
from .contributions import Contributions
from .costs import Cost
from .expected_gains import sets_together
from .fingerprint import fingerprint
from .runs import Run
from .task import Task
from .worker import measure, open_model, open_task, planned_cost
from .workers import Workers

KEEP = 3
"""One in so many goes on from one rung to the next."""
SHARES = (1 / 4, 1 / 2, 1)
"""The shares of the epochs that the rungs of successive halving take."""
NUMBERS = 8
"""About how many numbers of biases are trained in full in any case, spread evenly."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def analyze(
    task: Task,
    output: str | os.PathLike[str],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: Progress = lambda _what, _done, _all: None,
    warn: Callable[[str], None] = lambda _text: None,
) -> Contributions:
    """Measure the contributions of every piece of a network, by successive halving.

    All candidates are trained for a quarter of the epochs on one seed, the best third of them for half of the epochs on
    two, the best third of those in full on all; so are some numbers of biases, spread evenly, in any case. Then larger
    and larger sets of the weights that brought most are trained together, in full on all seeds. ``output`` is written
    after each run; an analysis that was interrupted goes on where it was. ``scheduler`` is the address of a Dask
    scheduler, whose workers see the same files; without one ``workers`` processes of this machine work, one a core by
    default. Results do not depend on who works.

    Raises
    ------
    ContributionError
        ``output`` holds another analysis.
    DataError
        The data cannot be used.
    """
    with analysis(task, output, scheduler, workers, progress, warn) as under_way:
        found, everything = under_way.found, candidates(under_way.structure, task.ratios, task.depths)

        def halve(what: str, group: Sequence[Candidate], base: Candidate, always: Sequence[Candidate] = ()) -> None:
            for rung, (epochs, seeds) in enumerate(rungs(task)):
                label = f"{what}, rung {rung + 1} of {len(SHARES)}"
                under_way.run(label, [base, *group], epochs, seeds, found.runs)
                group = _best(found, group, base, epochs, always)

        ladder = [candidate for candidate in everything if not candidate.weight]
        # Gains change slowly with the number: of the others, neighbours tell (:mod:`pock_tvm.choosing.expected_gains`).
        halve("biases", ladder, ladder[0], (*ladder[:: max(1, len(ladder) // NUMBERS)], ladder[-1]))
        base = found.base()
        halve("weights", [replace(each, biases=base.biases) for each in everything if each.weight], base)
        under_way.run("weights together", sets_together(found), task.recipe.epochs, task.seeds, found.trials)
    return found


@dataclass(frozen=True)
class Analysis:
    """An analysis under way: what was measured before and is now, and who measures."""

    found: Contributions
    structure: Structure
    output: Path
    pool: Workers
    progress: Progress

    @property
    def folder(self) -> Path:
        """Where programs are kept until all runs are done."""
        return self.output.with_suffix(".programs")

    def run(
        self, label: str, group: Iterable[Candidate | Together], epochs: float, seeds: int, kept: list[Run]
    ) -> None:
        """Do the runs of a group that are not ``kept`` yet, each candidate once a seed, and write each down."""
        runs = list(dict.fromkeys((candidate, epochs, seed) for candidate in group for seed in range(seeds)))
        done = {(run.candidate, run.epochs, run.seed) for run in kept}
        missing = [run for run in runs if run not in done]
        jobs = [
            (self.found.task, scheme_of(self.structure, each.biases, each.shares).rules, epochs, seed, self.folder)
            for each, epochs, seed in missing
        ]
        self.progress(label, len(runs) - len(missing), len(runs))
        for count, (number, measured) in enumerate(self.pool.run(measure, jobs), 1):
            candidate, epochs, seed = missing[number]
            kept.append(Run(candidate, epochs, seed, measured.score, measured.loss))
            if isinstance(candidate, Candidate) and measured.cost is not None:
                self.found.costs[candidate] = measured.cost
            self.found.save(self.output)
            self.progress(label, len(runs) - len(missing) + count, len(runs))


@contextlib.contextmanager
def analysis(
    task: Task,
    output: str | os.PathLike[str],
    scheduler: str | None,
    workers: int | None,
    progress: Progress,
    warn: Callable[[str], None],
) -> Iterator[Analysis]:
    """What every analysis begins and ends with: when all runs are done, it is finished, and programs are removed."""
    path = Path(output).resolve()
    found, structure = begin(task, path, warn)
    with Workers(scheduler, workers) as pool:
        under_way = Analysis(found, structure, path, pool, progress)
        yield under_way
    found.finished = True
    found.save(path)
    shutil.rmtree(under_way.folder, ignore_errors=True)


def rungs(task: Task) -> list[tuple[float, int]]:
    """Epochs and seeds of each rung."""
    return [(task.recipe.epochs * share, min(task.seeds, rung + 1)) for rung, share in enumerate(SHARES[:-1])] + [
        (task.recipe.epochs, task.seeds)
    ]


def begin(task: Task, output: Path, warn: Callable[[str], None]) -> tuple[Contributions, Structure]:
    """What was measured before, or nothing yet; data and model are looked at."""
    require("what is analysed", task, one_of("a pock.Task", Task))
    model, structure, training, validation = open_task(task)
    check_folder(output)
    seen, held = digests(training), digests(validation)
    known = set(seen)
    twice = sum(digest in known for digest in held)
    if twice:
        warn(
            f"{twice} of {len(validation)} validation samples are training samples too: gains will look larger than "
            "they are"
        )
    targets = [np.asarray(samples.targets).tobytes() for samples in (training, validation)]
    data = hashlib.sha256(b"".join([*seen, *held, *targets])).hexdigest()
    rows = {name: list(channels.read) for name, channels in structure.channels.items() if channels.read}
    found = Contributions(task, fingerprint(model), data, rows=rows)
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
        found = replace(before, task=task, rows=rows)
    return found, structure


def _best(
    found: Contributions, group: Sequence[Candidate], base: Candidate, epochs: float, always: Sequence[Candidate]
) -> list[Candidate]:
    """The best third of a group after so many epochs, in the group's order, and what stays in any case."""
    gains = found.gains(group, base, epochs)
    ranked = sorted(gains, key=lambda candidate: -gains[candidate].mean)
    kept = {*ranked[: -(-len(ranked) // KEEP)], *always}
    return [candidate for candidate in group if candidate in kept]


def add_costs(found: Contributions, structure: Structure, output: Path, progress: Progress) -> list[Candidate]:
    """Plan what costs are not known of, and write them down; the candidates that can be trained.

    Behind an operator without gradient nothing can: weights come with as many of the last biases as can be trained.
    """
    task = found.task

    def planned(group: Iterable[Candidate]) -> list[Candidate]:
        missing = [each for each in group if each not in found.costs]
        found.costs |= planned_costs(task, missing, None, progress, found.rows)
        return [each for each in group if each in found.costs]

    group = candidates(structure, task.ratios, task.depths)
    known = planned(group)
    most = max((each.biases for each in known), default=0)
    if any(each.biases > most for each in group):
        known = planned(dict.fromkeys(replace(each, biases=min(each.biases, most)) for each in group))
    found.save(output)
    return known


def planned_costs(
    task: Task,
    wanted: Iterable[Candidate],
    target: Any = None,
    progress: Progress = lambda _what, _done, _all: None,
    rows: Mapping[str, Sequence[int]] | None = None,
) -> dict[Candidate, Cost]:
    """The cost of each candidate that can be trained, and of the biases that it is compared to, planned and not built;
    ``rows`` are those of :class:`Contributions`."""
    asked = list(dict.fromkeys(candidate for each in wanted for candidate in (each, Candidate(each.biases))))
    costs: dict[Candidate, Cost] = {}
    if not asked:
        return costs
    with Workers() as pool:
        structure = open_model(task)[1].reading(rows or {})
        jobs = [(task, scheme_of(structure, each.biases, each.shares).rules, target) for each in asked]
        for done, (number, cost) in enumerate(pool.run(planned_cost, jobs), 1):
            if cost is not None:
                costs[asked[number]] = cost
            progress("planning candidates", done, len(asked))
    return costs
