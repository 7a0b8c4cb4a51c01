"""Contributions: measured gains of training parts of a network.

PockEngine's section 3.2 (MICRO 2023): the accuracy that the last k biases add to training the head alone, and that one
weight at a channel ratio adds to training biases alone.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from ..errors import ContributionError
from ..frontend import Model
from .candidates import Candidate, WeightSet
from .contribution_file import read_contributions, write_contributions
from .costs import Cost
from .fingerprint import fingerprint, first_difference
from .runs import Gain, Run
from .task import Task

AnyCandidate = TypeVar("AnyCandidate", Candidate, WeightSet)


@dataclass
class Contributions:
    """Measurements of one network on one task."""

    task: Task
    fingerprint: dict[str, Any]
    """Fingerprint of the model (:func:`pock_tvm.choosing.fingerprint.fingerprint`)."""
    data: str
    """Digest of samples and labels, of training and validation data."""
    runs: list[Run] = field(default_factory=list)
    """Runs of single candidates."""
    costs: dict[Candidate, Cost] = field(default_factory=dict)
    """Cost of each candidate's program, at the task's batch and optimizer, compiled for the machine that ran it."""
    scores: dict[Candidate, float] = field(default_factory=dict)
    """First-order scores, if computed (:mod:`pock_tvm.choosing.first_order`)."""
    finished: bool = False
    """Whether all runs are done; False for an analysis that was interrupted."""
    trials: list[Run] = field(default_factory=list)
    """Runs of weight sets."""
    kinds: list[Run] = field(default_factory=list)
    """Runs of the head, of all biases, and of all weights of one kind (:mod:`pock_tvm.choosing.weight_groups`)."""
    rows: dict[str, list[int]] = field(default_factory=dict)
    """Rows of each embedding that the training data reads, most frequent first, where an input looks them up."""
    eight_bits: list[Run] = field(default_factory=list)
    """Runs of the head behind layers in eight bits (:mod:`pock_tvm.choosing.eight_bits`)."""

    def run_of(self, candidate: Candidate | WeightSet, epochs: float, seed: int) -> Run | None:
        """Return a run; None if it is not done yet."""
        key = (candidate, epochs, seed)
        return next((run for run in self._runs(candidate) if (run.candidate, run.epochs, run.seed) == key), None)

    def _runs(self, candidate: Candidate | WeightSet) -> Sequence[Run]:
        """Return the list of runs that holds those of a candidate."""
        return self.runs if isinstance(candidate, Candidate) else [*self.trials, *self.kinds]

    def measured(self) -> list[Candidate]:
        """List the candidates that were trained, in the order of their first run."""
        return list(dict.fromkeys(run.candidate for run in self.runs if isinstance(run.candidate, Candidate)))

    def gain(
        self, candidate: Candidate | WeightSet, base: Candidate | WeightSet, within: float = math.inf
    ) -> Gain | None:
        """Compute the gain in score over ``base``, by the candidate's longest runs; None if one of its runs failed.

        Runs of more than ``within`` epochs are ignored.
        """
        return self._difference("score", candidate, base, within)

    def gains(
        self, group: Iterable[AnyCandidate], base: Candidate | WeightSet, within: float = math.inf
    ) -> dict[AnyCandidate, Gain]:
        """Compute the gain over ``base`` of each candidate without a failed run, estimated from validation losses.

        The loss is less noisy than the accuracy of a few hundred samples. Decreases in loss are converted to points of
        accuracy by least squares over the group's runs of equal length. Without recorded losses, or where they do not
        fall as accuracy rises, gains are differences in accuracy.
        """
        result = {each: gain for each in group if (gain := self.gain(each, base, within)) is not None}
        for epochs in {gain.epochs for gain in result.values()}:
            gains = {each: gain for each, gain in result.items() if gain.epochs == epochs}
            decreases = self._decreases(gains, base, within)
            slope = _slope(gains, decreases)
            if slope:
                result |= {each: decrease.times(slope) for each, decrease in decreases.items()}
        return result

    def points_per_loss(self, group: Iterable[AnyCandidate], base: Candidate | WeightSet, epochs: float) -> float:
        """Return the points of accuracy that a decrease of the loss by one stands for, by a group's runs of this
        length; 0 where :meth:`gains` are differences in accuracy."""
        gains = {each: gain for each in group if (gain := self.gain(each, base)) is not None and gain.epochs == epochs}
        return _slope(gains, self._decreases(gains, base, math.inf))

    def _decreases(
        self, group: Iterable[AnyCandidate], base: Candidate | WeightSet, within: float
    ) -> dict[AnyCandidate, Gain]:
        """Return the decreases in loss, where it is recorded."""
        return {
            each: increase.times(-1)
            for each in group
            if (increase := self._difference("loss", each, base, within)) is not None
        }

    def _difference(
        self, metric: str, candidate: Candidate | WeightSet, base: Candidate | WeightSet, within: float
    ) -> Gain | None:
        """Compare ``score`` or ``loss`` of a candidate's longest runs with the same runs of ``base``, seed by seed."""
        own_runs = [run for run in self._runs(candidate) if run.candidate == candidate and run.epochs <= within]
        if not own_runs or any(run.score is None for run in own_runs):
            return None
        epochs = max(run.epochs for run in own_runs)
        pairs = [
            (getattr(run, metric), getattr(other, metric))
            for run in own_runs
            if run.epochs == epochs and (other := self.run_of(base, epochs, run.seed)) is not None
        ]
        differences = [own - reference for own, reference in pairs if own is not None and reference is not None]
        if not differences:
            return None
        spread = statistics.stdev(differences) if len(differences) > 1 else None
        return Gain(statistics.mean(differences), spread, len(differences), epochs)

    def base(self) -> Candidate:
        """Return the baseline of weights: the number of biases that gained most when trained alone."""
        measured = self.measured()
        weights = [candidate for candidate in measured if candidate.weight]
        if weights:
            return Candidate(weights[0].biases)
        longest = max((run.epochs for run in self.runs), default=0.0)
        gains = self.gains(sorted(measured), Candidate(0))
        full_length = {each: gain.mean for each, gain in gains.items() if gain.epochs == longest}
        return max(full_length, key=full_length.__getitem__, default=Candidate(0))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, atomically."""
        write_contributions(path, {each.name: getattr(self, each.name) for each in fields(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Contributions:
        """Read a file that :meth:`save` wrote.

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
            Names the first difference.
        """
        difference = first_difference(self.fingerprint, fingerprint(model))
        if difference:
            raise ContributionError(
                f"the contributions are of another model: {difference}. Analyze this one, or name that one"
            )


def _slope(gains: Mapping[AnyCandidate, Gain], decreases: Mapping[AnyCandidate, Gain]) -> float:
    """Fit gains in accuracy to decreases in loss, through zero; 0 where a decrease is missing, or they do not agree."""
    square = sum(decrease.mean**2 for decrease in decreases.values())
    if not square or len(decreases) < len(gains):
        return 0.0
    return max(0.0, sum(gains[each].mean * decrease.mean for each, decrease in decreases.items()) / square)
