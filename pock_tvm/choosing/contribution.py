"""Contributions: what training a piece of a network brings, as it was measured, and the file that keeps it.

PockEngine's section 3.2 (MICRO 2023): the accuracy that the last k biases bring over the head alone, and that a share
of one weight brings over biases alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..device.arguments import FLAG, PATH, Kind, is_number, one_of, options, whole
from ..device.files import replacing
from ..errors import ContributionError, OptionError
from ..frontend import Model
from ..frontend.structure import Structure
from ..schemes.scheme import Scheme, What
from ..training.fine_tuning import Recipe
from .costs import Cost

FORMAT = "pock-contributions/2"
Piece = TypeVar("Piece", "Candidate", "Together")


@dataclass(frozen=True, order=True)
class Candidate:
    """Something to train: the head, the last ``biases`` biases, and perhaps a share of one weight."""

    biases: int
    weight: str = ""
    ratio: float = 1.0

    @property
    def shares(self) -> dict[str, float]:
        """What is trained of which weight."""
        return {self.weight: self.ratio} if self.weight else {}

    def __str__(self) -> str:
        base = f"head + last {self.biases} biases" if self.biases else "head"
        return f"{base} + {self.weight} at {self.ratio:g}" if self.weight else base


@dataclass(frozen=True)
class Together:
    """Shares of several weights, with the head and the last ``biases`` biases."""

    biases: int
    weights: tuple[tuple[str, float], ...]

    @property
    def shares(self) -> dict[str, float]:
        """What is trained of which weight."""
        return dict(self.weights)

    def __str__(self) -> str:
        base = str(Candidate(self.biases))
        if not self.weights:
            return base
        first, *others = (weight for weight, _ in self.weights)
        return f"{base} + {first}" + (f" and {len(others)} more" if others else "")


def ladder(structure: Structure) -> list[str]:
    """The small parameters that are trained from the last on: biases (also those of normalisation), or the scales of a
    network that has none."""
    return structure.of_role("bias") or structure.of_role("scale")


def scheme_of(structure: Structure, biases: int, weights: Mapping[str, float]) -> Scheme:
    """The scheme that trains the head, the last ``biases`` biases, and these shares of weights."""
    steps = ladder(structure)
    full = dict.fromkeys([*steps[len(steps) - biases :], *structure.head_parameters()], "full")
    return Scheme({"*": "frozen"} | full | {name: trained_at(structure, name, weights[name]) for name in weights})


def trained_at(structure: Structure, weight: str, share: float) -> What:
    """What a share of a weight is, as a scheme says it: of an embedding those rows that the data reads most often."""
    channels = structure.channels.get(weight)
    if channels is not None and channels.read:
        return sorted(channels.read[: channels.share(share)])
    return "full" if share == 1 else share


def candidates(structure: Structure, ratios: Sequence[float], depths: int | None = None) -> list[Candidate]:
    """Everything that is measured alone: numbers of last biases (``depths`` of them, spread evenly, or all), and each
    weight but the head's at each ratio that makes a difference, together with all biases."""
    whole = len(ladder(structure))
    count = whole if depths is None else min(depths, whole)
    numbers = sorted({0, whole} | {round(whole * step / count) for step in range(1, count + 1)})
    found = [Candidate(number) for number in numbers]
    for weight in weights_of(structure):
        channels = structure.channels.get(weight)
        seen = set()
        for ratio in sorted(ratios) if channels else [1.0]:
            trained = channels.share(ratio) if channels else 1
            if trained not in seen:
                found.append(Candidate(whole, weight, ratio))
            seen.add(trained)
    return found


def kinds_of(structure: Structure, group: Iterable[Candidate]) -> dict[str, Together]:
    """The weights of a group of candidates by kind (of layer, scales, embeddings that an input is looked up in,
    others), all of a kind together, each at its largest ratio."""
    kinds = {layer.weight: layer.kind for layer in structure.layers}
    for name in structure.of_role("embedding"):
        kinds[name] = "embedding" if name in structure.look_ups else "other embedding"
    found: dict[str, dict[str, float]] = {}
    ordered = sorted(group)  # the largest ratio last
    for each in ordered:
        if each.weight:
            found.setdefault(kinds.get(each.weight, "scale"), {})[each.weight] = each.ratio
    return {kind: Together(ordered[-1].biases, tuple(weights.items())) for kind, weights in found.items()}


def weights_of(structure: Structure) -> list[str]:
    """The weights in front of the head, each once, in the order in which they run: of layers, embeddings, and of
    normalisation (its scales) where those are no steps of the ladder."""
    found = {layer.weight for layer in structure.layers}
    found |= {*structure.of_role("embedding"), *structure.of_role("scale")}
    found -= {*ladder(structure), *structure.head_parameters()}
    return sorted(found, key=structure.first_use.__getitem__)


def depth_of(structure: Structure, weight: str) -> int:
    """How many of the last biases have to be trained for a gradient to reach a weight."""
    layers = [layer.position for layer in structure.layers if layer.weight == weight]
    position = min(layers, default=structure.first_use[weight])
    return sum(structure.first_use[name] >= position for name in ladder(structure))


def _are_ratios(value: Any) -> bool:
    return isinstance(value, Sequence) and all(is_number(ratio) and 0 < ratio <= 1 for ratio in value)


@options(
    model=PATH, data=PATH, validation=PATH,
    recipe=one_of("a pock.Recipe", Recipe),
    batch=whole("a number of samples, at least 1", 1).or_none(),
    shapes=one_of("a mapping of input names to shapes", Mapping),
    loss=one_of("the name of a loss", str),
    optimizer=one_of("a mapping such as {'kind': 'sgd', 'momentum': 0.9}", Mapping),
    seeds=whole("a number of seeds, at least 1", 1),
    ratios=Kind("a sequence of shares in (0, 1]", _are_ratios),
    depths=whole("a number of depths, at least 1", 1).or_none(),
    flip=FLAG, crop=FLAG,
    preprocessing=one_of("a mapping: {'mean': […], 'std': […]}", Mapping),
)  # fmt: skip
@dataclass(frozen=True)
class Task:
    """What is learned, and how it is measured."""

    model: str
    """The path of a ``.pt2`` or ``.onnx`` file."""
    data: str
    validation: str
    recipe: Recipe = field(default_factory=Recipe)
    batch: int | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    loss: str = "cross_entropy"
    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"kind": "sgd", "momentum": 0.9})
    seeds: int = 3
    ratios: Sequence[float] = (0.125, 0.25, 0.5, 1.0)
    depths: int | None = None
    """How many numbers of last biases are measured; all by default."""
    flip: bool = False
    crop: bool = False
    preprocessing: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What decides over results: all but where the files lie. As JSON gives it back."""
        plain = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in plain.items() if name not in ("model", "data", "validation")}


@dataclass(frozen=True)
class Run:
    """One fine-tuning: what was trained, how long, and what came of it."""

    candidate: Candidate | Together
    epochs: float
    seed: int
    score: float | None
    """Accuracy in percent, or minus the loss where there are no classes; None where the loss ceased to be a number."""
    loss: float | None = None
    """The mean loss of the same samples, where it is known."""


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

    # ---- the file ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a JSON file; one that is there is replaced when the new one is complete."""
        content = {
            "format": FORMAT,
            "task": asdict(self.task),
            "fingerprint": self.fingerprint,
            "data": self.data,
            "runs": [asdict(run) for run in self.runs],
            "costs": [asdict(candidate) | {"cost": asdict(cost)} for candidate, cost in self.costs.items()],
            "scores": [asdict(candidate) | {"score": score} for candidate, score in self.scores.items()],
            "finished": self.finished,
            "trials": [asdict(run) for run in self.trials],
            "kinds": [asdict(run) for run in self.kinds],
            "rows": self.rows,
        }
        with replacing(path) as file:
            file.write(json.dumps(content, indent=1).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Contributions:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ContributionError
            The file is missing, damaged or of another format.
        """
        try:
            content = json.loads(Path(path).read_text())
            if content["format"] != FORMAT:
                raise ContributionError(
                    f"'{path}' has the format {content['format']!r}, and this version reads {FORMAT!r}: analyze again"
                )
            task = content["task"]
            return cls(
                Task(**task | {"recipe": Recipe(**task["recipe"])}),
                content["fingerprint"],
                content["data"],
                [Run(**run | {"candidate": Candidate(**run["candidate"])}) for run in content["runs"]],
                {_candidate(entry): Cost(**entry["cost"]) for entry in content["costs"]},
                {_candidate(entry): entry["score"] for entry in content["scores"]},
                bool(content["finished"]),
                _runs_together(content.get("trials", [])),
                _runs_together(content.get("kinds", [])),
                content.get("rows", {}),
            )
        except FileNotFoundError as error:
            raise ContributionError(f"there is no file '{path}': 'pock analyze' makes one") from error
        except (OSError, ValueError, KeyError, TypeError, OptionError) as error:
            raise ContributionError(f"'{path}' holds no contributions, or is damaged ({error!r})") from error

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


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    return Candidate(entry["biases"], entry["weight"], entry["ratio"])


def _runs_together(entries: Sequence[dict[str, Any]]) -> list[Run]:
    def together(entry: Mapping[str, Any]) -> Together:
        return Together(entry["biases"], tuple((weight, share) for weight, share in entry["weights"]))

    return [Run(**entry | {"candidate": together(entry["candidate"])}) for entry in entries]


GRAPH = "(graph)"
"""Among the weights of a fingerprint what is no weight: what is computed with them."""


def fingerprint(model: Model) -> dict[str, Any]:
    """What tells models apart: for each weight its shape and a digest of its values, and one of the graph."""
    weights = {
        name: {"shape": list(array.shape), "values": hashlib.sha256(array.tobytes()).hexdigest()[:16]}
        for name, array in model.weights.items()
    }
    graph = hashlib.sha256(model.module.script().encode()).hexdigest()[:16]
    return weights | {GRAPH: {"shape": [], "values": graph}}


def first_difference(measured: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """The first thing in which two fingerprints differ, in words."""
    for name in dict.fromkeys([*measured, *given]):
        if name not in given:
            return f"it had '{name}', which is missing here"
        if name not in measured:
            return f"it had no '{name}'"
        if measured[name]["shape"] != given[name]["shape"]:
            return (
                f"'{name}' had the shape {tuple(measured[name]['shape'])}, and has {tuple(given[name]['shape'])} here"
            )
        if measured[name]["values"] != given[name]["values"]:
            return "its operators were others" if name == GRAPH else f"'{name}' had other values"
    return None
