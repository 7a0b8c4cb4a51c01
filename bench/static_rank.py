"""Ranks schedules by static estimates and by measurement, where both exist: kernels of `bench/tuning.py` on this CPU.

    python bench/static_rank.py runs [--json out.json]

`runs` is the folder of a comparison by `bench/tuning.py`. Of each kernel, the trials of all its searches that did not
fail are estimated by `llvm-mca` (`pock tune --measure static`), and Spearman's rank correlation with their measured
times is printed: 1 is the same order. At the end stands that of the default schedules across kernels. Nothing is
measured here.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr
from tuning import TARGET, kernels

from pock_tvm.tuning.measurer import MeasuringError
from pock_tvm.tuning.static.measure import StaticMeasure


def ranked(definition: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Estimate trials, and compare their order with the measured one. ``default`` are the cycles that are estimated for
    the default schedule, and its median seconds; None without an estimate."""
    points = [json.loads(row["decisions"]) for row in rows]
    points = [{name: tuple(each) if isinstance(each, list) else each for name, each in p.items()} for p in points]
    try:
        estimates = list(StaticMeasure(TARGET).measure(definition, str(TARGET), points))
    except MeasuringError:  # of the default's: the tuner leaves such a kernel alone
        estimates = []
    cycles = next((estimate.reference for estimate in estimates if estimate.reference), None)
    pairs = [  # none without estimates
        (estimate.speedup, row["reference"] / row["seconds"])
        for estimate, row in zip(estimates, rows, strict=bool(estimates))
        if estimate.speedup
    ]
    best = max(pairs)[1] if pairs else None
    return {
        "trials": len(rows),
        "estimated": len(pairs),
        "correlation": float(spearmanr(*zip(*pairs, strict=True)).statistic) if len(pairs) > 2 else None,
        "best estimated": best,
        "best": max((speed for _, speed in pairs), default=None),
        "default": cycles and (cycles, statistics.median(row["reference"] for row in rows)),
    }


def main(
    folder: Annotated[Path, typer.Argument(help="Searches of bench/tuning.py")],
    json_output: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print a row for each kernel: the correlation, and how fast the schedule is that the estimates like best."""
    table = Table(title="static estimates against measurement; speeds relative to the default schedule")
    for name in ("kernel", "trials", "estimated", "rank correlation", "speed of the best estimated", "best speed"):
        table.add_column(name, justify="right")
    records = []
    for kernel in track(kernels(folder, 12), "estimating", console=Console(stderr=True)):
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob(f"{kernel.name}-own-*.parquet")):
            rows = pyarrow.parquet.read_table(path).to_pylist()
            found |= {row["decisions"]: row for row in rows if row["seconds"]}
        if not found:
            continue
        record = {"kernel": kernel.name} | ranked(kernel.definition, list(found.values()))
        records.append(record)
        numbers = (record[name] for name in ("correlation", "best estimated", "best"))
        cells = ("" if number is None else f"{number:.2f}" for number in numbers)
        table.add_row(kernel.name, str(record["trials"]), str(record["estimated"]), *cells)
    defaults = [record["default"] for record in records if record["default"]]
    if len(defaults) > 2:
        across = spearmanr(*zip(*defaults, strict=True)).statistic
        table.add_section()
        table.add_row("defaults, across kernels", "", str(len(defaults)), f"{across:.2f}")
    Console().print(table)
    if json_output is not None:
        json_output.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    typer.run(main)
