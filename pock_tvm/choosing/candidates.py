"""Candidates: the parts of a network that may be trained, and the schemes that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..frontend.structure import Structure
from ..schemes.scheme import Rule, Scheme


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


def trained_at(structure: Structure, weight: str, share: float) -> Rule:
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
