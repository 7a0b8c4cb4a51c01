"""Pictures of what was measured and chosen: contributions, fronts, a scheme over its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .contribution import Candidate, Contributions, ladder
from .integer_program import Choice
from .plots import MIB, new_figure
from .report import layer_share
from .scheme import Scheme
from .structure import Structure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .frontend import Model


def draw_contributions(found: Contributions) -> Figure:
    """Gains of numbers of last biases as a curve, of weights as bars, each with its spread over seeds; first-order
    scores where nothing else was measured."""
    candidates = list(found.costs) or list(found.scores)
    numbers = sorted(candidate for candidate in candidates if not candidate.weight)
    weights = list(dict.fromkeys(candidate.weight for candidate in candidates if candidate.weight))
    figure = new_figure(11, 9)
    upper, lower = figure.subplots(2, 1, height_ratios=(1, 1.4))
    means, spreads = _gains(found, numbers, Candidate(0))
    upper.errorbar([c.biases for c in numbers], means, yerr=spreads, marker="o", markersize=3, capsize=2, linewidth=1)
    upper.axhline(0, color="black", linewidth=0.5)
    upper.set(xlabel="last biases trained", ylabel=f"{_unit(found)} over the head alone")
    ratios = sorted({candidate.ratio for candidate in candidates if candidate.weight})
    width = 0.8 / max(1, len(ratios))
    for at, ratio in enumerate(ratios):
        own = {c.weight: c for c in candidates if c.weight and c.ratio == ratio}
        places = [index + at * width for index, name in enumerate(weights) if name in own]
        means, spreads = _gains(found, [own[name] for name in weights if name in own], found.base())
        lower.bar(places, means, width, yerr=spreads, label=f"{ratio:g} of its channels", error_kw={"linewidth": 0.6})
    lower.axhline(0, color="black", linewidth=0.5)
    lower.set(ylabel=f"{_unit(found)} over biases alone")
    lower.set_xticks([index + 0.4 for index in range(len(weights))], weights, rotation=90, fontsize=6)
    if ratios:
        lower.legend(fontsize=7)
    return figure


def _unit(found: Contributions) -> str:
    return "gain" if found.runs else "first-order score"


def _gains(found: Contributions, candidates: Sequence[Candidate], base: Candidate) -> tuple[list[float], list[float]]:
    """Means, and spreads; of what failed NaN, which no picture shows."""
    if not found.runs:
        return [found.scores[candidate] for candidate in candidates], [0.0] * len(candidates)
    gains = [found.gain(candidate, base) for candidate in candidates]
    return (
        [gain.mean if gain else np.nan for gain in gains],
        [gain.spread or 0.0 if gain else np.nan for gain in gains],
    )


def draw_fronts(
    fronts: Mapping[str, Sequence[Choice]], chosen: Choice | None, budgets: dict[str, float | None]
) -> Figure:
    """Expected gain against memory and against the time of a step, with the chosen point and the budgets."""
    figure = new_figure(11, 4.2)
    for axes, resource, unit, scale in zip(
        figure.subplots(1, 2), ("memory", "seconds"), ("MiB beside the weights", "ms a step"), (MIB, 1e-3), strict=True
    ):
        points = fronts[resource]
        axes.plot([getattr(p, resource) / scale for p in points], [p.gain for p in points], marker="o", markersize=4)
        if chosen is not None:
            axes.plot(
                [getattr(chosen, resource) / scale], [chosen.gain], "*", color="crimson", markersize=13, label="chosen"
            )
        budget = budgets.get(resource)
        if budget is not None:
            axes.axvline(budget / scale, color="black", linestyle=":", label="budget")
        axes.set(xlabel=unit, ylabel="expected gain over the head alone")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure


def draw_scheme(scheme: Scheme, structure: Structure, model: Model) -> Figure:
    """The network from input to head: of each layer what share of its weight is trained, and whether its biases are."""
    trained = scheme.resolve(model)
    layers = sorted(structure.layers, key=lambda layer: layer.position)
    kinds = sorted({layer.kind for layer in layers})
    figure = new_figure(11, 3.6)
    axes = figure.subplots()
    for at, layer in enumerate(layers):
        color = f"C{kinds.index(layer.kind)}"
        axes.bar(at, 1, 0.8, fill=False, edgecolor="lightgray", linewidth=0.8)
        axes.bar(at, layer_share(layer.weight, structure, trained), 0.8, color=color)
    starts = [layer.position for layer in layers]
    for name in [*ladder(structure), *structure.head_parameters()]:
        if name in trained:
            at = max(0, int(np.searchsorted(starts, structure.first_use[name], side="right")) - 1)
            axes.plot([at], [-0.06], marker="^", markersize=4, color="black")
    for kind in kinds:
        axes.bar(0, 0, color=f"C{kinds.index(kind)}", label=kind)
    axes.plot([], [], "k^", markersize=4, label="bias trained")
    axes.set_xticks(range(len(layers)), [layer.weight for layer in layers], rotation=90, fontsize=6)
    axes.set(ylim=(-0.12, 1.05), xlim=(-1, len(layers)), ylabel="share of the weight trained")
    axes.legend(fontsize=7, ncols=len(kinds) + 1, loc="upper left", bbox_to_anchor=(0, 1.15))
    return figure
