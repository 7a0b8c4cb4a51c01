"""Runs the zoo: judges every row that has no outcome yet, and prints the table.

    python -m tests.zoo [--only resnet] [--again refused] [--fresh] [--limit 600]

Outcomes are written as they come, a JSON object a line (``--to``), so an interrupted run goes on where it stopped. A
row is judged in a process of its own: one that dies or takes too long loses that row alone. Exits with 1 if a row is
wrong or crashes, or fewer than 95 % are right. With all rows judged, ``--operators`` writes how many of their graphs
contain each of ATen's operators to ``tests/zoo/operators.json``, which ``scripts/opinfo.py`` reads.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .judge import FAULTS, RIGHT, SCHEMES, Outcome
from .processes import judged
from .table import ROWS

OPERATORS = Path(__file__).with_name("operators.json")
"""How many rows' graphs contain each operator."""
ENOUGH = 0.95
"""Share of the rows that must be right by every scheme."""


def read(path: Path) -> dict[str, Outcome]:
    """Read the outcomes so far; the last of a row counts."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {outcome.name: outcome for outcome in (Outcome(**json.loads(line)) for line in lines)}


def main(
    only: Annotated[list[str] | None, typer.Option(help="Rows with this in their names; all by default.")] = None,
    again: Annotated[str, typer.Option(help="Judge rows of this verdict again.")] = "",
    fresh: Annotated[bool, typer.Option(help="Forget the outcomes so far.")] = False,
    limit: Annotated[float, typer.Option(help="Seconds for a row.")] = 600.0,
    operators: Annotated[bool, typer.Option(help="Write the operators of all graphs.")] = False,
    to: Annotated[Path, typer.Option(help="Where outcomes are kept.")] = Path("build/zoo.jsonl"),
) -> None:
    """Judge rows, and print the table."""
    console = Console(width=200 if not Console().is_terminal else None)
    to.parent.mkdir(parents=True, exist_ok=True)
    if fresh:
        to.unlink(missing_ok=True)
    known = read(to)
    names = [name for name in ROWS if not only or any(part in name for part in only)]
    missing = [name for name in names if name not in known or (again and again in known[name].verdicts.values())]
    for index, outcome in enumerate(judged(missing, limit), 1):
        known[outcome.name] = outcome
        with to.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        said = " ".join(outcome.verdicts.values())
        line = f"{index}/{len(missing)} {outcome.name}: {said}, {outcome.seconds:.0f} s {outcome.reason}"
        console.print(line, markup=False, soft_wrap=True, highlight=False)
    outcomes = [known[name] for name in names]
    console.print(table_of(outcomes))
    if operators:
        OPERATORS.write_text(json.dumps(counted(outcomes), indent=1) + "\n")
    right = sum(set(outcome.verdicts.values()) == {RIGHT} for outcome in outcomes)
    wrong = [outcome.name for outcome in outcomes if set(outcome.verdicts.values()) & set(FAULTS)]
    console.print(f"{right} of {len(outcomes)} rows are right by every scheme; wrong or crashed: {len(wrong)}")
    if wrong or right < ENOUGH * len(outcomes):
        raise typer.Exit(1)


def table_of(outcomes: list[Outcome]) -> Table:
    """Format outcomes. Times are rough on a machine that does other things."""
    table = Table("architecture", "parameters", *SCHEMES, "ours ms", "eager ms", "operators", "s", "reason")
    for outcome in outcomes:
        times = ("" if ms is None else f"{ms:.2f}" for ms in (outcome.ours_ms, outcome.eager_ms))
        verdicts = (outcome.verdicts[scheme] for scheme in SCHEMES)
        numbers = str(len(outcome.operators)), f"{outcome.seconds:.0f}"
        table.add_row(outcome.name, f"{outcome.parameters:,}", *verdicts, *times, *numbers, outcome.reason)
    return table


def counted(outcomes: list[Outcome]) -> dict[str, int]:
    """Count the graphs that contain each operator, the most frequent first."""
    counts = Counter(name for outcome in outcomes for name in outcome.operators)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


if __name__ == "__main__":
    typer.run(main)
