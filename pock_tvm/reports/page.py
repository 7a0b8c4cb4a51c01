"""``pock report``: contributions, costs and the chosen scheme in one self-contained HTML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choosing.candidates import Candidate, biases_of, rule_at, scheme_of
from ..choosing.contributions import Contributions
from ..choosing.expected_gains import HEAD, kind_gains, measured_sets, rank_agreement
from ..choosing.integer_program import Choice, Choices, front, total
from ..choosing.runs import Gain
from ..choosing.scheme_search import best_alternative, budgets_of, prepare_search
from ..choosing.time_model import Profiles
from ..choosing.worker import open_model
from ..device.files import make_folder, replacing
from ..frontend.structure import Structure
from ..schemes.scheme import Scheme
from .choice_tables import amounts, reasons
from .html import Table, write_page
from .program_plots import MIB
from .scheme_plots import draw_contributions, draw_fronts, draw_scheme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    contributions: Contributions,
    output: str | os.PathLike[str],
    *,
    scheme: Scheme | None = None,
    memory: float | None = None,
    seconds: float | None = None,
    target: Any = None,
    profiles: Profiles = (),
    pictures: str | os.PathLike[str] | None = None,
) -> None:
    """Write a report: gains and costs of all parts, Pareto fronts, and the scheme drawn over the network.

    ``memory`` in bytes and ``seconds`` are budgets: each front respects the other resource's, and shows its own.
    They, ``target`` and ``profiles`` are those of :func:`pock_tvm.search`. ``pictures`` is a folder for PNG files.

    Raises
    ------
    PockError
        Matplotlib or Jinja is missing.
    """
    budgets = budgets_of(memory, seconds)
    structure, alternatives, time_model = prepare_search(contributions, target, profiles)
    choices = best_alternative(alternatives, budgets)
    chosen = choice_of(scheme, choices, structure) if scheme is not None else None
    fronts = {
        resource: front(alternatives, resource, **{other: budgets[other]})
        for resource, other in (("memory", "seconds"), ("seconds", "memory"))
    }
    figures: dict[str, tuple[str, str, Figure]] = {
        "contributions": (
            "What each piece brings",
            "Above: the last biases, over the head alone. Below: a share of each weight, over biases alone. Points of "
            "accuracy as the loss of held-out samples tells them; bars of spread are standard deviations over seeds.",
            draw_contributions(contributions),
        ),
        "fronts": (
            "What it takes",
            "Each point is the best choice for its memory or its time, solved exactly, in as many micro-batches as are "
            "best for it; what was chosen for a budget runs in no more of them than that asks for. Gains and costs are "
            "sums over pieces; what a scheme takes as a whole is planned, and may lie a little beside its sum.",
            draw_fronts(fronts, chosen, {"memory": memory, "seconds": seconds}),
        ),
    }
    if scheme is not None:
        figures["scheme"] = (
            "What is trained",
            "From input to head.",
            draw_scheme(scheme, structure, open_model(contributions.task)[0]),
        )
    drawn = write_page(
        output,
        f"What to train of {Path(contributions.task.model).stem}",
        [*_task_lines(contributions), f"The {time_model}.", *_rank_lines(contributions)],
        list(figures.values()),
        _tables(contributions, choices, chosen, fronts["memory"]),
    )
    if pictures is not None:
        make_folder(pictures)
        for name, data in zip(figures, drawn, strict=True):
            with replacing(Path(pictures) / f"{name}.png") as file:
                file.write(data)


def choice_of(scheme: Scheme, choices: Choices, structure: Structure) -> Choice | None:
    """Return the choice that a scheme corresponds to; None if it is not made of these options."""
    biases = sum(scheme.rules.get(name) == "full" for name in biases_of(structure))
    weights = {
        name: ratio
        for name, weight in choices.weights.items()
        for ratio in weight.options
        if scheme.rules.get(name) == rule_at(structure, name, ratio)
    }
    if biases not in choices.biases or scheme_of(structure, biases, weights).rules != scheme.rules:
        return None
    return total(choices, biases, weights)


def _task_lines(contributions: Contributions) -> list[str]:
    task = contributions.task
    runs = [*contributions.runs, *contributions.trials, *contributions.kinds]
    failed = sum(run.score is None for run in runs)
    lines = [
        f"Data: {task.data}, validated on {task.validation}.",
        f"Runs: {len(runs)} of up to {task.recipe.epochs:g} epochs at a learning rate of {task.recipe.lr:g} "
        f"({task.recipe.lr_schedule}), {task.optimizer['kind']}, up to {task.seeds} seeds.",
    ]
    return (
        [*lines, f"{failed} runs failed: their loss ceased to be a number. They are never chosen."] if failed else lines
    )


def _rank_lines(contributions: Contributions) -> list[str]:
    return [
        f"First-order scores rank {what} like the measured gains with a correlation of {value:.2f} (Spearman)."
        for what, value in rank_agreement(contributions).items()
    ]


def _tables(contributions: Contributions, choices: Choices, chosen: Choice | None, points: list[Choice]) -> list[Table]:
    tables: list[Table] = []
    if chosen is not None:
        tables.append(("The chosen pieces", ["piece", "expected gain", "MiB", "ms a step"], reasons(choices, chosen)))
    header = ["last biases", "weights", "micro-batches", "expected gain", "MiB", "ms a step"]
    rows = [
        [str(p.biases), str(len(p.weights)), str(p.micro_batches), *amounts(p.gain, p.memory, p.seconds)]
        for p in points
    ]
    tables.append(("The front of gain against memory", header, rows))
    rows = [
        [str(each), f"{summed:+.2f}", f"{gain.mean:+.2f}", _spread(gain)]
        for each, summed, gain in measured_sets(contributions)
    ]
    if rows:
        header = ["trained", "gain of each alone, summed", "gain over biases alone", "spread"]
        tables.append(("Weights together", header, rows))
    rows = [
        [str(kind), f"{gain.mean:+.2f}", _spread(gain)]
        for kind, gain in kind_gains(contributions).items()
        if kind != HEAD
    ]
    if rows:
        tables.append(("Kinds of weights", ["trained", "gain over the head", "spread"], rows))
    rows = []
    for candidate in contributions.measured():
        gain = contributions.gain(candidate, contributions.base() if candidate.weight else Candidate(0))
        words = (
            ["failed", "", "", ""]
            if gain is None
            else [f"{gain.mean:+.2f}", _spread(gain), str(gain.seeds), f"{gain.epochs:g}"]
        )
        rows.append(
            [
                str(candidate),
                *words,
                f"{contributions.costs[candidate].memory / MIB:.2f}" if candidate in contributions.costs else "",
            ]
        )
    if rows:
        tables.append(("Everything that was measured", ["trained", "gain", "spread", "seeds", "epochs", "MiB"], rows))
    return tables


def _spread(gain: Gain) -> str:
    return "" if gain.spread is None else f"± {gain.spread:.2f}"
