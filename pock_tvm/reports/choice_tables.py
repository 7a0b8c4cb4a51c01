"""Tables of contributions and choices, for the command line and the report."""

from __future__ import annotations

from rich import box
from rich.table import Table

from ..choosing.candidates import Candidate, WeightSet
from ..choosing.contributions import Contributions
from ..choosing.expected_gains import HEAD, expected_gains, kind_gains
from ..choosing.integer_program import Choice, Choices
from ..choosing.runs import Gain
from .tables import MIB


def contribution_table(contributions: Contributions) -> Table:
    """Build a table with one row for each number of last biases and each weight.

    It shows measured gains in points (in brackets those of runs that were stopped early), else shares of the gains of
    kinds of weights, else first-order scores.
    """
    expected = {} if contributions.runs else expected_gains(contributions)
    candidates = contributions.measured() or list(expected)
    ratios = sorted({candidate.ratio for candidate in candidates if candidate.weight})
    if contributions.runs:
        title = "gains (in brackets: of runs that were stopped early)"
    else:
        title = "shares, by size, of what their kinds brought" if contributions.kinds else "first-order scores"
    title += ", and what kinds of weights bring over the head" if contributions.kinds else ""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("trained", overflow="fold")  # in a narrow window names are broken, and not numbers
    for ratio in ratios or [1.0]:
        table.add_column("" if ratio == 1 else f"{ratio:g}", justify="right", no_wrap=True)

    def gain(candidate: Candidate, base: Candidate) -> str:
        return _gain(contributions, candidate, base) if contributions.runs else f"{expected[candidate]:.3g}"

    for candidate in sorted(each for each in candidates if not each.weight):
        table.add_row(str(candidate), *[""] * (len(ratios) - 1), gain(candidate, Candidate(0)))
    table.add_section()
    by_weight: dict[str, dict[float, Candidate]] = {}
    for candidate in candidates:
        if candidate.weight:
            by_weight.setdefault(candidate.weight, {})[candidate.ratio] = candidate
    for weight, own in by_weight.items():
        table.add_row(weight, *(gain(own[r], contributions.base()) if r in own else "" for r in ratios))
    table.add_section()
    for weight_set in dict.fromkeys(run.candidate for run in contributions.trials):
        table.add_row(
            str(weight_set), *[""] * (len(ratios) - 1), _gain(contributions, weight_set, contributions.base())
        )
    for kind, gain_of_kind in kind_gains(contributions).items():
        if kind != HEAD:
            table.add_row(str(kind), *[""] * (len(ratios) - 1), _words(gain_of_kind))
    return table


def _gain(contributions: Contributions, candidate: Candidate | WeightSet, base: Candidate) -> str:
    gain = contributions.gain(candidate, base)
    if gain is None:
        return "failed"
    return _words(gain) if gain.epochs == max(run.epochs for run in contributions.runs) else f"({_words(gain)})"


def _words(gain: Gain) -> str:
    return f"{gain.mean:+.2f}" + ("" if gain.spread is None else f" ± {gain.spread:.2f}")


def choice_table(choices: Choices, chosen: Choice) -> Table:
    """Build a table of the parts that a search chose, with expected gains and costs."""
    parts = f", costs in {chosen.micro_batches} micro-batches" if chosen.micro_batches > 1 else ""
    table = Table(title=f"chosen{parts}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("piece", no_wrap=True)
    for name in ("expected gain", "MiB", "ms a step"):
        table.add_column(name, justify="right")
    for row in reasons(choices, chosen):
        table.add_row(*row)
    if chosen.gain >= choices.gain_cap:
        table.caption = "more did not help when it was trained together"
    return table


def reasons(choices: Choices, chosen: Choice) -> list[list[str]]:
    """Build a row for each part of a choice: name, expected gain, memory and time; the last row is the sum."""
    options = {name: choices.weights[name].options[ratio] for name, ratio in chosen.weights.items()}
    # The rest is the cost of the head, the biases, and the backward graph down to the deepest weight.
    memory = chosen.memory - sum(option.memory for option in options.values())
    seconds = chosen.seconds - sum(option.seconds for option in options.values())
    name = f"head and last {chosen.biases} biases" if chosen.biases else "head"
    rows = [[name, *amounts(choices.biases[chosen.biases].gain, memory, seconds)]]
    for weight, option in options.items():
        label = f"{weight} at {chosen.weights[weight]:g}"
        rows.append([label, *amounts(option.gain, option.memory, option.seconds)])
    return [*rows, ["together", *amounts(chosen.gain, chosen.memory, chosen.seconds)]]


def amounts(gain: float, memory: float, seconds: float) -> list[str]:
    """Format points, MiB and milliseconds."""
    return [f"{gain:+.3g}", f"{memory / MIB:.3f}", f"{1e3 * seconds:.3f}"]
