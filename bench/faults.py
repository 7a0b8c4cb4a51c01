"""Kills training, fills its disk, takes its permissions away, damages files, wears processes out: counts what fails.

    python bench/faults.py [--only state] [--tenth] [--seed 0] [--json out.json]

Each part is a function of a count and a seed, which returns how often the fault came and what went wrong. Exit code 1
if anything did. The table is for RESULTS.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import mutations
import typer
from faults_of_processes import (
    dropped_trainers,
    ended_threads,
    flipped_cache_bits,
    many_steps,
    trainers_in_processes,
    trainers_in_threads,
)
from faults_of_state import Tally, full_disks, kills, kills_of_an_analysis, permissions, short_writes
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Part:
    """A kind of fault: how it is made, and how often or how many seconds long."""

    name: str
    count: int
    make: Callable[[int, int], Tally]


def mutated_files(count: int, _seed: int) -> Tally:
    """Change bytes of files of every kind, and read them; the cases are the same in every run."""
    rows = mutations.run(count)
    made = sum(sum(row.outcomes.values()) for row in rows)
    return Tally(made, [fault for row in rows for fault in row.faults])


PARTS = [
    Part("state: killed while training and saving", 180, kills),
    Part("state: full disk", 20, full_disks),
    Part("state: short write", 20, short_writes),
    Part("state: permission", 20, permissions),
    Part("analysis: killed", 20, kills_of_an_analysis),
    Part("files: mutated", 10_000, mutated_files),
    Part("cache: flipped bit", 100, flipped_cache_bits),
    Part("use: 8 trainers in threads, for 600 s", 600, trainers_in_threads),
    Part("use: 8 trainers in processes, for 600 s", 600, trainers_in_processes),
    Part("use: trainers dropped", 300, dropped_trainers),
    Part("use: threads ended", 200, ended_threads),
    Part("use: steps", 20_000, many_steps),
]


def main(
    only: Annotated[str, typer.Option(help="Parts whose name holds this")] = "",
    tenth: Annotated[bool, typer.Option("--tenth", help="A tenth of each part")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    output: Annotated[Path | None, typer.Option("--json", help="Where to write the numbers")] = None,
) -> None:
    """Make faults, and print what came of them."""
    table, records = Table(), []
    for column in ("fault", "made", "lost or wrong", "s"):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for part in PARTS:
        if only not in part.name:
            continue
        start = time.perf_counter()
        tally = part.make(-(-part.count // 10) if tenth else part.count, seed)
        seconds = time.perf_counter() - start
        table.add_row(part.name, str(tally.made), str(len(tally.wrong)), f"{seconds:.0f}")
        records.append({"fault": part.name, "seconds": seconds, **asdict(tally)})
        for each in tally.wrong:
            print(f"{part.name}: {each}", file=sys.stderr)
    Console().print(table)
    if output is not None:
        output.write_text(json.dumps(records, indent=1))
    raise typer.Exit(int(any(record["wrong"] for record in records)))


if __name__ == "__main__":
    typer.run(main)
