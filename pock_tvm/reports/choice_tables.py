"""The tables of contributions and choices that the command line and the report show."""

from __future__ import annotations

from rich import box
from rich.table import Table

from ..choosing.candidates import Candidate, Together
from ..choosing.contributions import Contributions, Gain
from ..choosing.expected_gains import HEAD, expected_gains, gains_of_kinds
from ..choosing.integer_program import Choice, Choices
from .tables import MIB


def contribution_table(found: Contributions) -> Table:
    """One row for each number of last biases and for each weight, with gains in points (in brackets those of runs that
    were stopped early), shares of what kinds of weights brought, or first-order scores."""
    expected = {} if found.runs else expected_gains(found)
    candidates = found.measured() or list(expected)
    ratios = sorted({candidate.ratio for candidate in candidates if candidate.weight})
    if found.runs:
        title = "gains (in brackets: of runs that were stopped early)"
    else:
        title = "shares, by size, of what their kinds brought" if found.kinds else "first-order scores"
    title += ", and what kinds of weights bring over the head" if found.kinds else ""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("trained", overflow="fold")  # in a narrow window names are broken, and not numbers
    for ratio in ratios or [1.0]:
        table.add_column("" if ratio == 1 else f"{ratio:g}", justify="right", no_wrap=True)

    def gain(candidate: Candidate, base: Candidate) -> str:
        return _gain(found, candidate, base) if found.runs else f"{expected[candidate]:.3g}"

    for candidate in sorted(each for each in candidates if not each.weight):
        table.add_row(str(candidate), *[""] * (len(ratios) - 1), gain(candidate, Candidate(0)))
    table.add_section()
    by_weight: dict[str, dict[float, Candidate]] = {}
    for candidate in candidates:
        if candidate.weight:
            by_weight.setdefault(candidate.weight, {})[candidate.ratio] = candidate
    for weight, own in by_weight.items():
        table.add_row(weight, *(gain(own[r], found.base()) if r in own else "" for r in ratios))
    table.add_section()
    for tried in dict.fromkeys(run.candidate for run in found.trials):
        table.add_row(str(tried), *[""] * (len(ratios) - 1), _gain(found, tried, found.base()))
    for kind, brought in gains_of_kinds(found).items():
        if kind != HEAD:
            table.add_row(str(kind), *[""] * (len(ratios) - 1), _words(brought))
    return table


def _gain(found: Contributions, candidate: Candidate | Together, base: Candidate) -> str:
    gain = found.gain(candidate, base)
    if gain is None:
        return "failed"
    return _words(gain) if gain.epochs == max(run.epochs for run in found.runs) else f"({_words(gain)})"


def _words(gain: Gain) -> str:
    return f"{gain.mean:+.2f}" + ("" if gain.spread is None else f" ± {gain.spread:.2f}")


def choice_table(choices: Choices, chosen: Choice) -> Table:
    """The pieces that a search chose, with what each is expected to bring and takes."""
    parts = f", costs in {chosen.micro_batches} micro-batches" if chosen.micro_batches > 1 else ""
    table = Table(title=f"chosen{parts}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("piece", no_wrap=True)
    for name in ("expected gain", "MiB", "ms a step"):
        table.add_column(name, justify="right")
    for row in reasons(choices, chosen):
        table.add_row(*row)
    if chosen.gain >= choices.enough:
        table.caption = "more did not help when it was trained together"
    return table


def reasons(choices: Choices, chosen: Choice) -> list[list[str]]:
    """For each piece of a choice what it is expected to bring and to take, and the sum."""
    shares = {name: choices.weights[name].options[share] for name, share in chosen.weights.items()}
    # What is left is taken by the head, the biases, and the gradient's way to the deepest weight.
    memory = chosen.memory - sum(share.memory for share in shares.values())
    seconds = chosen.seconds - sum(share.seconds for share in shares.values())
    name = f"head and last {chosen.biases} biases" if chosen.biases else "head"
    rows = [[name, *amounts(choices.biases[chosen.biases].gain, memory, seconds)]]
    for weight, share in shares.items():
        what = f"{weight} at {chosen.weights[weight]:g}"
        rows.append([what, *amounts(share.gain, share.memory, share.seconds)])
    return [*rows, ["together", *amounts(chosen.gain, chosen.memory, chosen.seconds)]]


def amounts(gain: float, memory: float, seconds: float) -> list[str]:
    """Points, MiB and milliseconds, as tables show them."""
    return [f"{gain:+.3g}", f"{memory / MIB:.3f}", f"{1e3 * seconds:.3f}"]
