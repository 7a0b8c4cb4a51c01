"""Plots of contributions, Pareto fronts, and of a scheme over its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..choosing.candidates import Candidate
from ..choosing.contributions import Contributions
from ..choosing.expected_gains import expected_gains
from ..choosing.integer_program import Choice
from ..compiler.layers import layer_share
from ..frontend.structure import Structure
from ..schemes.scheme import Scheme
from .program_plots import MIB, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..frontend import Model


def draw_contributions(contributions: Contributions) -> Figure:
    """Draw gains of numbers of last biases as points, and of weights by channel ratio as bars, with spreads over seeds.

    Runs that were stopped early are paler. Without runs of single candidates, estimates are drawn instead: shares of
    the gains of kinds of weights, or first-order scores.
    """
    candidates = contributions.measured() or list(expected_gains(contributions))
    numbers = sorted(candidate for candidate in candidates if not candidate.weight)
    weights = list(dict.fromkeys(candidate.weight for candidate in candidates if candidate.weight))
    ratios = sorted({candidate.ratio for candidate in candidates if candidate.weight})
    lengths = sorted({run.epochs for run in contributions.runs}) or [0.0]
    figure = new_figure(11, 9)
    upper, lower = figure.subplots(2, 1, height_ratios=(1, 1.4))
    width, tops = 0.8 / max(1, len(ratios)), [0.0]
    for length, alpha in zip(lengths, np.linspace(0.25, 1, len(lengths) + 1)[1:], strict=True):
        label = f"runs of {length:g} epochs" if contributions.runs else None
        bars: dict[float, Bar] = {c.biases: bar for c, bar in _of(contributions, numbers, Candidate(0), length).items()}
        upper.errorbar(
            list(bars), *_columns(bars), fmt="o", markersize=4, capsize=2, color="C0", alpha=alpha, label=label
        )
        of_weights = _of(contributions, [each for each in candidates if each.weight], contributions.base(), length)
        for at, ratio in enumerate(ratios):
            own = {each: bar for each, bar in of_weights.items() if each.ratio == ratio}
            bars = {weights.index(each.weight) + at * width: bar for each, bar in own.items()}
            means, spreads = _columns(bars)
            named = {"label": f"at {ratio:g}"} if length == lengths[-1] else {}
            lower.bar(list(bars), means, width, yerr=spreads, color=f"C{at}", alpha=alpha, **named)
            tops += means
    for axes, over in ((upper, "the head"), (lower, "biases")):
        axes.axhline(0, color="black", linewidth=0.5)
        axes.set_ylabel(
            f"{'gain' if contributions.runs or contributions.kinds else 'first-order score'} over {over} alone"
        )
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    upper.set_xlabel("last biases trained")
    if max(tops) > 0:
        lower.set_ylim(bottom=max(lower.get_ylim()[0], -1.5 * max(tops)))  # large losses would hide the gains
    lower.set_xticks([index + 0.4 for index in range(len(weights))], weights, rotation=90, fontsize=6)
    return figure


Bar = tuple[float, float]
"""Mean and spread of a gain."""


def _of(
    contributions: Contributions, candidates: list[Candidate], base: Candidate, length: float
) -> dict[Candidate, Bar]:
    """Compute the gains of candidates whose longest runs had this length; candidates with a failed run are left out."""
    if not contributions.runs:
        expected = expected_gains(contributions)
        return {candidate: (expected[candidate], 0.0) for candidate in candidates if candidate in expected}
    gains = contributions.gains(candidates, base)
    return {each: (gain.mean, gain.spread or 0.0) for each, gain in gains.items() if gain.epochs == length}


def _columns(bars: Mapping[float, Bar]) -> tuple[list[float], list[float]]:
    return [mean for mean, _ in bars.values()], [spread for _, spread in bars.values()]


def draw_fronts(
    fronts: Mapping[str, Sequence[Choice]], chosen: Choice | None, budgets: dict[str, float | None]
) -> Figure:
    """Draw the fronts of expected gain against memory and step time, with the chosen point and the budgets."""
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
    """Draw a scheme over the network, from input to head: the trained share of each layer's and embedding's weight, and
    trained biases and scales."""
    trained = scheme.resolve(model)
    layers = [(layer.position, layer.weight, layer.kind) for layer in structure.layers]
    layers += [(structure.first_use[name], name, "embedding") for name in structure.of_role("embedding")]
    layers.sort()
    kinds = sorted({kind for _, _, kind in layers})
    figure = new_figure(
        11, 2.6 + 0.05 * max(len(weight) for _, weight, _ in layers)
    )  # room for the names below the axis
    axes = figure.subplots()
    for at, (_, weight, kind) in enumerate(layers):
        color = f"C{kinds.index(kind)}"
        axes.bar(at, 1, 0.8, fill=False, edgecolor="lightgray", linewidth=0.8)
        axes.bar(at, layer_share(weight, structure, trained), 0.8, color=color)
    starts = [position for position, _, _ in layers]
    for name, role in structure.roles.items():
        if name in trained and role in ("bias", "scale"):
            at = max(0, int(np.searchsorted(starts, structure.first_use[name], side="right")) - 1)
            axes.plot([at], [-0.06], marker="^", markersize=4, color="black")
    for kind in kinds:
        axes.bar(0, 0, color=f"C{kinds.index(kind)}", label=kind)
    axes.plot([], [], "k^", markersize=4, label="bias or scale trained")
    axes.set_xticks(range(len(layers)), [weight for _, weight, _ in layers], rotation=90, fontsize=6)
    axes.set(ylim=(-0.12, 1.05), xlim=(-1, len(layers)), ylabel="share of the weight trained")
    axes.legend(fontsize=7, ncols=len(kinds) + 1, loc="upper left", bbox_to_anchor=(0, 1.15))
    return figure
