"""Candidates: the parts of a network that may be trained, each with the scheme that trains it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..frontend.structure import Structure
from ..schemes.scheme import Rule, Scheme


@dataclass(frozen=True, order=True)
class Candidate:
    """One training choice: the head, the last ``biases`` biases, and optionally one weight at a channel ratio."""

    biases: int
    weight: str = ""
    ratio: float = 1.0

    @property
    def ratios(self) -> dict[str, float]:
        """The channel ratio of each trained weight, by name."""
        return {self.weight: self.ratio} if self.weight else {}

    def __str__(self) -> str:
        base = f"head + last {self.biases} biases" if self.biases else "head"
        return f"{base} + {self.weight} at {self.ratio:g}" if self.weight else base


@dataclass(frozen=True)
class WeightSet:
    """Several weights that are trained together, with the head and the last ``biases`` biases."""

    biases: int
    weights: tuple[tuple[str, float], ...]
    """Names and channel ratios."""

    @property
    def ratios(self) -> dict[str, float]:
        """The channel ratio of each trained weight, by name."""
        return dict(self.weights)

    def __str__(self) -> str:
        base = str(Candidate(self.biases))
        if not self.weights:
            return base
        first, *others = (weight for weight, _ in self.weights)
        return f"{base} + {first}" + (f" and {len(others)} more" if others else "")


def biases_of(structure: Structure) -> list[str]:
    """Return the biases in front of the head, those of normalisation included, in the order in which they are read.

    In a network without biases the scales of normalisation take their place.
    """
    return structure.of_role("bias") or structure.of_role("scale")


def scheme_of(structure: Structure, biases: int, ratios: Mapping[str, float]) -> Scheme:
    """Build the scheme that trains the head, the last ``biases`` biases, and weights at these channel ratios."""
    names = biases_of(structure)
    full = dict.fromkeys([*names[len(names) - biases :], *structure.head_parameters()], "full")
    return Scheme({"*": "frozen"} | full | {name: rule_at(structure, name, ratio) for name, ratio in ratios.items()})


def rule_at(structure: Structure, weight: str, ratio: float) -> Rule:
    """Return the scheme's rule for a weight at a ratio: for an embedding, the rows that the data reads most often."""
    channels = structure.channels.get(weight)
    if channels is not None and channels.read:
        return sorted(channels.read[: channels.count_at(ratio)])
    return "full" if ratio == 1 else ratio


def candidates(structure: Structure, ratios: Sequence[float], depths: int | None = None) -> list[Candidate]:
    """List the candidates of a network.

    These are the numbers of last biases (``depths`` of them, evenly spaced, or all), and each weight in front of the
    head, with all biases, at each ratio that trains another number of channels.
    """
    bias_count = len(biases_of(structure))
    count = bias_count if depths is None else min(depths, bias_count)
    numbers = sorted({0, bias_count} | {round(bias_count * step / count) for step in range(1, count + 1)})
    result = [Candidate(number) for number in numbers]
    for weight in candidate_weights(structure):
        channels = structure.channels.get(weight)
        seen = set()
        for ratio in sorted(ratios) if channels else [1.0]:
            channel_count = channels.count_at(ratio) if channels else 1
            if channel_count not in seen:
                result.append(Candidate(bias_count, weight, ratio))
            seen.add(channel_count)
    return result


def weights_by_kind(structure: Structure, group: Iterable[Candidate]) -> dict[str, WeightSet]:
    """Group the weights of candidates by kind, each weight at its largest ratio.

    Kinds are those of layers, ``scale``, ``embedding`` (looked up by an input) and ``other embedding``.
    """
    kinds = {layer.weight: layer.kind for layer in structure.layers}
    for name in structure.of_role("embedding"):
        kinds[name] = "embedding" if name in structure.look_ups else "other embedding"
    ratios: dict[str, dict[str, float]] = {}
    ordered = sorted(group)  # the largest ratio last
    for each in ordered:
        if each.weight:
            ratios.setdefault(kinds.get(each.weight, "scale"), {})[each.weight] = each.ratio
    return {kind: WeightSet(ordered[-1].biases, tuple(weights.items())) for kind, weights in ratios.items()}


def candidate_weights(structure: Structure) -> list[str]:
    """List the weights in front of the head, each once, in the order of first use: layers, embeddings, and scales of
    normalisation unless they take the place of biases."""
    weights = {layer.weight for layer in structure.layers}
    weights |= {*structure.of_role("embedding"), *structure.of_role("scale")}
    weights -= {*biases_of(structure), *structure.head_parameters()}
    return sorted(weights, key=structure.first_use.__getitem__)


def depth_of(structure: Structure, weight: str) -> int:
    """Return the depth of a weight: the number of last biases that lie between it and the loss."""
    layers = [layer.position for layer in structure.layers if layer.weight == weight]
    position = min(layers, default=structure.first_use[weight])
    return sum(structure.first_use[name] >= position for name in biases_of(structure))
