"""Measures the accuracy that frozen layers in eight bits cost: the head is trained behind them, as behind floats."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from ..frontend.structure import Structure
from .analysis import Progress
from .candidates import Candidate, WeightSet, scheme_of
from .contributions import Contributions
from .expected_gains import HEAD
from .runs import Run
from .worker import measure
from .workers import Workers


def measured_drop(
    contributions: Contributions,
    structure: Structure,
    frozen: str,
    progress: Progress = lambda _label, _done, _count: None,
) -> float | None:
    """Measure how many points the head loses behind frozen layers of the type ``frozen``.

    Each of its longest runs is repeated with the same seed, unless ``contributions`` has that run, and added to them.
    For the head alone all layers before it are frozen. A scheme that trains more has fewer of them, and its training
    can make good for what they lose: the drop is an upper estimate of its own. Result: as :func:`drop_of`.
    """
    known = {(run.epochs, run.seed) for run in contributions.eight_bits}
    missing = [run for run in _runs_of_head(contributions) if (run.epochs, run.seed) not in known]
    rules, label = scheme_of(structure, 0, {}).rules, "the head behind eight bits"
    with Workers() as pool, tempfile.TemporaryDirectory() as folder:
        jobs = [(contributions.task, rules, run.epochs, run.seed, Path(folder), None, frozen) for run in missing]
        for done, (number, result) in enumerate(pool.run(measure, jobs), 1):
            run = missing[number]
            contributions.eight_bits.append(Run(Candidate(0), run.epochs, run.seed, result.score, result.loss))
            progress(label, done, len(missing))
    contributions.eight_bits.sort(key=lambda run: (run.epochs, run.seed))  # workers end in any order
    return drop_of(contributions)


def drop_of(contributions: Contributions) -> float | None:
    """Compute the points that the head loses by the runs that are done, at least 0; None if none can be compared.

    As in :meth:`Contributions.gains` the loss counts, in points of accuracy, where it is known.
    """
    floats = {(run.epochs, run.seed): run for run in _runs_of_head(contributions)}
    pairs = [
        (run, other)
        for run in contributions.eight_bits
        if run.score is not None and (other := floats.get((run.epochs, run.seed))) is not None
    ]
    if not pairs:
        return None
    points = _points_per_loss(contributions, pairs[0][0].epochs)
    risen = [run.loss - other.loss for run, other in pairs if run.loss is not None and other.loss is not None]
    if points and len(risen) == len(pairs):
        return max(0.0, points * statistics.mean(risen))
    return max(0.0, statistics.mean(other.score - run.score for run, other in pairs))  # type: ignore[operator]


def _runs_of_head(contributions: Contributions) -> list[Run]:
    """Return the longest runs of the head behind floats."""
    runs = contributions.runs or contributions.kinds
    own = [run for run in runs if run.candidate in (Candidate(0), HEAD) and run.score is not None]
    longest = max((run.epochs for run in own), default=0.0)
    return [run for run in own if run.epochs == longest]


def _points_per_loss(contributions: Contributions, epochs: float) -> float:
    if contributions.runs:
        return contributions.points_per_loss(contributions.measured(), Candidate(0), epochs)
    kinds = [run.candidate for run in contributions.kinds if isinstance(run.candidate, WeightSet)]
    return contributions.points_per_loss(kinds, HEAD, epochs)
