"""Contributions: what training a piece of a network brings, as it was measured, and the file that keeps it.

PockEngine's section 3.2 (MICRO 2023): the accuracy that the last k biases bring over the head alone, and that a share
of one weight brings over biases alone.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from ..errors import ContributionError
from ..frontend import Model
from .candidates import Candidate, Together
from .contribution_file import read_contributions, write_contributions
from .costs import Cost
from .fingerprint import fingerprint, first_difference
from .runs import Run
from .task import Task

Piece = TypeVar("Piece", "Candidate", "Together")


@dataclass(frozen=True)
class Gain:
    """What a candidate brings over another, in points."""

    mean: float
    spread: float | None
    """The standard deviation over seeds; None of a single one."""
    seeds: int
    epochs: float

    def times(self, factor: float) -> Gain:
        """The same in another unit."""
        spread = None if self.spread is None else abs(factor) * self.spread
        return replace(self, mean=factor * self.mean, spread=spread)


@dataclass
class Contributions:
    """All that was measured of one network on one task."""

    task: Task
    fingerprint: dict[str, Any]
    """Of the model: :func:`fingerprint`."""
    data: str
    """A digest of the samples and their labels, to train and to validate on."""
    runs: list[Run] = field(default_factory=list)
    """Of pieces, each alone."""
    costs: dict[Candidate, Cost] = field(default_factory=dict)
    """What the program of each candidate takes, at the task's batch and optimizer, on the machine that ran it."""
    scores: dict[Candidate, float] = field(default_factory=dict)
    """First-order scores of the quick mode, where it ran (:mod:`pock_tvm.choosing.first_order`)."""
    finished: bool = False
    """Whether all runs are done, and not the first of an analysis that was interrupted."""
    trials: list[Run] = field(default_factory=list)
    """Runs of several weights together."""
    kinds: list[Run] = field(default_factory=list)
    """Runs of the head, of all biases, and of all weights of a kind, where those were measured beside scores
    (:mod:`pock_tvm.choosing.weight_groups`)."""
    rows: dict[str, list[int]] = field(default_factory=dict)
    """Of each embedding whose rows are known by the data, those that the training data reads, most often read first."""

    def run_of(self, candidate: Candidate | Together, epochs: float, seed: int) -> Run | None:
        """A run, if it is done."""
        key = (candidate, epochs, seed)
        return next((run for run in self._runs(candidate) if (run.candidate, run.epochs, run.seed) == key), None)

    def _runs(self, candidate: Candidate | Together) -> Sequence[Run]:
        """All runs among which those of a candidate are."""
        return self.runs if isinstance(candidate, Candidate) else [*self.trials, *self.kinds]

    def measured(self) -> list[Candidate]:
        """Everything that was trained alone, in the order of its first run."""
        return list(dict.fromkeys(run.candidate for run in self.runs if isinstance(run.candidate, Candidate)))

    def gain(
        self, candidate: Candidate | Together, base: Candidate | Together, within: float = math.inf
    ) -> Gain | None:
        """What a candidate brings over ``base``, seed by seed, in its longest runs; None if any of its runs failed.

        ``within``: leave out runs of more epochs.
        """
        return self._compared(candidate, base, within, "score")

    def gains(self, group: Iterable[Piece], base: Candidate | Together, within: float = math.inf) -> dict[Piece, Gain]:
        """What each of a group that never failed brings over ``base``, as the loss of held-out samples tells it.

        The loss hardly knows the chance that flips a few of some hundred answers. What it falls by is turned into
        points as accuracy goes with it, by least squares over those of the group that were trained as long; where
        losses are not known, or tell nothing, accuracy speaks for itself.
        """
        found = {each: gain for each in group if (gain := self.gain(each, base, within)) is not None}
        for epochs in {gain.epochs for gain in found.values()}:
            gains = {each: gain for each, gain in found.items() if gain.epochs == epochs}
            falls = {each: rise.times(-1) for each in gains if (rise := self._compared(each, base, within, "loss"))}
            square = sum(fall.mean**2 for fall in falls.values())
            slope = sum(gains[each].mean * fall.mean for each, fall in falls.items()) / square if square else 0.0
            if len(falls) == len(gains) and slope > 0:
                found |= {each: fall.times(slope) for each, fall in falls.items()}
        return found

    def _compared(
        self, candidate: Candidate | Together, base: Candidate | Together, within: float, what: str
    ) -> Gain | None:
        """By how much the ``score`` or ``loss`` of a candidate's longest runs is above that of the same runs of
        ``base``."""
        own = [run for run in self._runs(candidate) if run.candidate == candidate and run.epochs <= within]
        if not own or any(run.score is None for run in own):
            return None
        epochs = max(run.epochs for run in own)
        pairs = [
            (getattr(run, what), getattr(other, what))
            for run in own
            if run.epochs == epochs and (other := self.run_of(base, epochs, run.seed)) is not None
        ]
        gains = [own - reference for own, reference in pairs if own is not None and reference is not None]
        if not gains:
            return None
        spread = statistics.stdev(gains) if len(gains) > 1 else None
        return Gain(statistics.mean(gains), spread, len(gains), epochs)

    def base(self) -> Candidate:
        """What weights are compared to: the number of biases that, trained alone, brought most."""
        measured = self.measured()
        weights = [candidate for candidate in measured if candidate.weight]
        if weights:
            return Candidate(weights[0].biases)
        longest = max((run.epochs for run in self.runs), default=0.0)
        gains = self.gains(sorted(measured), Candidate(0))
        known = {each: gain.mean for each, gain in gains.items() if gain.epochs == longest}
        return max(known, key=known.__getitem__, default=Candidate(0))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a JSON file; one that is there is replaced when the new one is complete."""
        write_contributions(path, {each.name: getattr(self, each.name) for each in fields(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Contributions:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ContributionError
            The file is missing, damaged or of another format.
        """
        return cls(**read_contributions(path))

    def check_model(self, model: Model) -> None:
        """Refuse a model that these contributions were not measured on.

        Raises
        ------
        ContributionError
            It names the first difference.
        """
        difference = first_difference(self.fingerprint, fingerprint(model))
        if difference:
            raise ContributionError(
                f"the contributions are of another model: {difference}. Analyze this one, or name that one"
            )
