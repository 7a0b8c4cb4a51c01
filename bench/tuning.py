"""Compares strategies of searching schedules: the same kernels of training, budget and measuring; several seeds.

    python bench/tuning.py runs [--strategy own/evolutionary --strategy metaschedule/metaschedule] [--trials 32]
        [--seeds 3] [--kernels 12] [--seconds 50] [--page out.html] [--plot out.png]

`runs` is a folder. A search that is done has a Parquet file there, a row a trial; the next call makes those that are
missing, until `--seconds` are over, so that a comparison can be made in slices when the machine is quiet.

Kernels: forward, data and weight gradient of a dense, a 1x1 and a depthwise convolution and of a linear layer, as
`pock.compile` makes them. A strategy is a space and who searches it: `own` is the schedules' own space,
`metaschedule` TVM's generic one; searched by a strategy of `pock tune`, those of other packages (`examples/`) among
them, or by `metaschedule`, TVM's own evolutionary search, for its space. All candidates are built, checked and timed by
the tuner's worker, in turns with the kernel's default schedule, by which times are divided.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet
import torch
import tvm
import typer
from metaschedule_search import MetaScheduleSearch
from rich.console import Console
from rich.table import Table
from torch import nn
from tvm import tirx

import pock_tvm as pock
from pock_tvm.compiler.database import text_of
from pock_tvm.compiler.rebuild import definitions_of
from pock_tvm.compiler.targets import kernel_target, resolve_target
from pock_tvm.reports.html import write_page
from pock_tvm.reports.tuning_plots import curves_figure, draw_curves
from pock_tvm.tuning.cost_model import COST_MODELS
from pock_tvm.tuning.measurer import Measurer
from pock_tvm.tuning.space import SPACES
from pock_tvm.tuning.strategies import STRATEGIES
from pock_tvm.tuning.trial_table import rows_of, write_table

BATCH = 8
"""Schedules that are proposed and measured together."""
METASCHEDULE = "metaschedule"
STRATEGY_NAMES = ("own/evolutionary", "own/random", f"{METASCHEDULE}/{METASCHEDULE}")
LEAST_FLOPS = 3e6
"""Arithmetic of the kernels that count: those of the first and the last layer have less."""
BUDGETS = (4, 8, 16, 32, 64, 128)
RESAMPLES, CONFIDENCE = 2000, 95
"""Bootstrap of the mean over kernels and seeds: resamples, and percent of them between the bounds."""
TARGET = resolve_target("host")
LABEL = "times as fast as the default"
console = Console(width=140)


@dataclass(frozen=True)
class Kernel:
    """A kernel of a training step."""

    name: str
    definition: str
    flops: float

    @property
    def func(self) -> tirx.PrimFunc:
        """Its loops before scheduling."""
        return tvm.ir.load_json(self.definition)


def kernels(folder: Path, count: int) -> list[Kernel]:
    """Compile a network of the four layers, and take its products, those with the most arithmetic first."""
    path = folder / "kernels.pock"
    if not path.exists():
        layers = [nn.Conv2d(3, 32, 1), nn.Conv2d(32, 64, 1), nn.Conv2d(64, 64, 3, 1, 1, groups=64)]
        layers += [nn.Conv2d(64, 64, 3, 2, 1), nn.Flatten(2), nn.Linear(196, 256), nn.Flatten(), nn.Linear(64 * 256, 3)]
        network = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        exported = torch.export.export(network.eval(), (torch.randn(4, 3, 28, 28),))
        pock.compile(exported, check=False).save(path)
    program = pock.Program.load(path)
    costs, found = program.manifest["kernels"], []
    for name, definition in definitions_of(program).items():
        if costs[name].get("kind") and costs[name]["flops"] > LEAST_FLOPS:
            found.append(Kernel(name, definition, costs[name]["flops"]))
    return sorted(found, key=lambda kernel: -kernel.flops)[:count]


def search(kernel: Kernel, name: str, trials: int, seed: int, measure: Measurer) -> Iterator[dict[str, Any]]:
    """Search the schedules of a kernel, and yield a row for each trial."""
    space_name, _, strategy = name.partition("/")
    space = SPACES.maker(space_name)(kernel_target(TARGET), kernel.func)
    rng = np.random.default_rng(seed)
    if strategy == METASCHEDULE:
        found: Any = MetaScheduleSearch(space, TARGET, trials, BATCH, seed)
    else:
        model = COST_MODELS.maker("none" if strategy == "random" else "xgboost")(TARGET)
        found = STRATEGIES.maker(strategy)(space, [], model, rng)
    number = 0
    head = {"kernel": kernel.name, "flops": kernel.flops, "strategy": name, "seed": seed}
    while number < trials:
        points = list(found.propose(min(BATCH, trials - number)))
        if not points:
            return  # the space is exhausted
        done = measure.measure(kernel.definition, str(TARGET), points)
        measured = {text_of(trial.decisions): trial for trial in done}
        ordered = [measured[text_of(point)] for point in points]
        found.observe(ordered)
        for row in rows_of(TARGET, space, ordered):
            yield head | {"number": number} | row
            number += 1


Job = tuple[Kernel, str, int]
"""A search: a kernel, a strategy and a seed."""


def run_searches(folder: Path, jobs: Sequence[Job], trials: int, seconds: float) -> int:
    """Make the searches that are missing in a folder, until a time is over, and return how many are still missing."""
    end = time.monotonic() + seconds
    left = len(jobs)
    with Measurer() as measure:
        for kernel, name, seed in jobs:
            path = path_of(folder, kernel.name, name, seed, trials)
            if path.exists():
                left -= 1
            elif time.monotonic() < end:
                start = time.monotonic()
                rows = list(search(kernel, name, trials, seed, measure))
                took = time.monotonic() - start
                write_table([row | {"took": took} for row in rows], path)
                left -= 1
    return left


def path_of(folder: Path, kernel: str, name: str, seed: int, trials: int) -> Path:
    """Name the file of a search."""
    return folder / f"{kernel}-{name.replace('/', '-')}-{seed}-{trials}.parquet"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the trials of a search."""
    return pyarrow.parquet.read_table(path).to_pylist()


def curve_of(rows: Sequence[dict[str, Any]], trials: int) -> list[float]:
    """Return how many times as fast as the default the best is after each trial: 0 until one has not failed. It stays
    where a search ended."""
    best, curve = 0.0, []
    for row in rows:
        best = max(best, row["reference"] / row["seconds"] if row["seconds"] else 0.0)
        curve.append(best)
    return curve + [best] * (trials - len(curve))


def mean_curve(curves: Iterable[Sequence[float]]) -> np.ndarray:
    """Return the geometric mean; what has not found anything yet counts as a hundredth of the default's speed."""
    return np.exp(np.mean(np.log(np.maximum(list(curves), 0.01)), axis=0))


def interval(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bootstrapped confidence bounds of the geometric mean. ``curves``: kernels x seeds x trials.

    The kernels are the ones that are asked about: seeds are drawn again for each.
    """
    rng = np.random.default_rng(0)
    count, seeds, _ = curves.shape
    drawn = rng.integers(seeds, size=(RESAMPLES, count, seeds))
    logs = np.log(np.maximum(curves, 0.01))
    means = np.stack([logs[np.arange(count)[:, None], each].mean(axis=(0, 1)) for each in drawn])
    low, high = np.percentile(means, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2], axis=0)
    return np.exp(low), np.exp(high)


def main(
    folder: Annotated[Path, typer.Argument(help="Where searches are kept")],
    strategy: Annotated[list[str] | None, typer.Option(help="SPACE/STRATEGY; may be repeated")] = None,
    trials: Annotated[int, typer.Option(min=1)] = 32,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    kernel_count: Annotated[int, typer.Option("--kernels", min=1)] = 12,
    seconds: Annotated[float, typer.Option(help="Time after which no search begins")] = math.inf,
    page: Annotated[Path | None, typer.Option(help="HTML with the curves of each kernel and of all")] = None,
    plot: Annotated[Path | None, typer.Option(help="Curves of all kernels, as a picture")] = None,
) -> None:
    """Compare strategies: make the searches that are missing, and print the best after some budgets."""
    folder.mkdir(parents=True, exist_ok=True)
    names = strategy or list(STRATEGY_NAMES)
    found = kernels(folder, kernel_count)
    jobs = [(kernel, name, seed) for seed in range(seeds) for kernel in found for name in names]
    left = run_searches(folder, jobs, trials, seconds)
    if left:
        console.print(f"{left} searches are missing: run it again")
        return
    curves: dict[str, np.ndarray] = {}
    rates: dict[str, float] = {}
    for name in names:
        runs = [
            [read_rows(path_of(folder, kernel.name, name, seed, trials)) for seed in range(seeds)] for kernel in found
        ]
        curves[name] = np.array([[curve_of(rows, trials) for rows in each] for each in runs])
        each_run = [rows for each in runs for rows in each if rows]
        rates[name] = sum(map(len, each_run)) / sum(rows[0]["took"] for rows in each_run)
    budgets = [budget for budget in BUDGETS if budget <= trials]
    header = ["strategy", *(f"{budget} trials" for budget in budgets), "trials/s"]
    rows = []
    for name in names:
        low, high = interval(curves[name])
        mean = mean_curve(curves[name].reshape(-1, trials))
        cells = [f"{mean[at - 1]:.2f} ({low[at - 1]:.2f} - {high[at - 1]:.2f})" for at in budgets]
        rows.append([name, *cells, f"{rates[name]:.1f}"])
    title = f"{LABEL}, geometric mean of {len(found)} kernels and {seeds} seeds ({CONFIDENCE} % confidence)"
    table = Table(title=title)
    for column in header:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    by_seed = {name: [mean_curve(each).tolist() for each in curves[name].swapaxes(0, 1)] for name in names}
    if plot is not None:
        draw_curves(by_seed, title, LABEL, plot)
    if page is not None:
        _write_page(page, title, found, curves, by_seed, (header, rows))


def _write_page(page: Path, title: str, found: Sequence[Kernel], curves: Any, by_seed: Any, table: Any) -> None:
    last = [
        [kernel.name, *(f"{statistics.median(each[number][:, -1]):.2f}" for each in curves.values())]
        for number, kernel in enumerate(found)
    ]
    text = "The best so far against trials: the median of the seeds, and a band from the lowest to the highest."
    figures = [("All kernels", text, curves_figure(by_seed, title, LABEL))]
    for number, kernel in enumerate(found):
        own = {name: each[number].tolist() for name, each in curves.items()}
        figures.append((kernel.name, f"{kernel.flops / 1e6:.1f} MFLOP.", curves_figure(own, kernel.name, LABEL)))
    tables = [(title, *table), ("Each kernel at the end, median of the seeds", ["kernel", *curves], last)]
    write_page(page, "Strategies of searching schedules", [f"Target: {TARGET}"], figures, tables)


if __name__ == "__main__":
    typer.run(main)
