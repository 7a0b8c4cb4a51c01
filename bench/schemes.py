"""Searches schemes for real networks on real data, and trains them: as good as training everything, in a quarter of
the memory?

    python bench/schemes.py [--only NAME] [--seeds 3] [--work DIR] [--json out.json]

For each task:

1. Contributions are measured on three quarters of the training data, against the last quarter as held-out data (for the
   transformers, contributions of kinds of weights).
2. A scheme is searched for a quarter of the memory of training everything.
3. Everything, that scheme, the last layers and the biases that fit into that quarter, and those that fit into the
   scheme's memory, are trained on all training data and tested. All but the first may run in micro-batches.

Learning rates, and the number of last layers (all that fit, half or a quarter of them), are chosen on the held-out
data. Evolution and random search get the same objective, with ``EVALUATIONS`` each. Needs ../shared/data; finished work
is kept in ``--work``.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from baselines import evolution, random_search
from rich.console import Console
from rich.table import Table
from sentences import export_minilm, write_sentences

import pock_tvm as pock
from pock_tvm.choosing.costs import cost_of
from pock_tvm.choosing.expected_gains import rank_agreement
from pock_tvm.choosing.first_order import score
from pock_tvm.choosing.integer_program import best
from pock_tvm.choosing.worker import compile_task, measure, open_model
from pock_tvm.choosing.workers import Workers
from pock_tvm.errors import MemoryBudgetError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MIB = 2**20
BUDGET_DIVISOR = 4
"""Memory of training everything, divided by the memory budget of a scheme."""
DEPTH_DIVISORS = (1, 2, 4)
"""Divisors of the number of last layers that fit: fewer layers are sometimes better."""
EVALUATIONS = 2000
"""Choices that evolution and random search evaluate each."""
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SGD = {"kind": "sgd", "momentum": 0.9}
ADAMW = {"kind": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


@dataclass(frozen=True)
class Bench:
    """A network and its data, with the options of the analysis and of the final training."""

    name: str
    model: str
    data: str
    batch: int
    epochs: float
    analysed: float
    """Epochs of the longest runs of the analysis."""
    rate: float
    """Learning rate of the analysis."""
    rates: Sequence[float]
    """Learning rates to choose from, for each scheme."""
    preprocessing: dict[str, Any]
    optimizer: dict[str, Any]
    ratios: Sequence[float] = (0.125, 0.25, 0.5, 1.0)
    depths: int | None = None
    lr_schedule: str = "cosine"
    kinds: bool = False
    """Whether kinds of weights are analysed, on one seed, instead of each weight."""


SLOW, FAST = (1e-4, 3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2)
SLOWER = (1e-5, 3e-5, *SLOW)
WIDE = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
FEW = (0.25, 1.0)
SCORED = (0.25, 0.5, 1.0)
TASKS = [
    Bench("mcunet-flowers12", "mcunet-5fps-flowers12", "flowers12", 8, 10, 4, 1e-3, SLOW, HALF, SGD),
    Bench("resnet20-cifar10", "resnet20-cifar10", "cifar10", 16, 6, 4, 3e-3, FAST, IMAGENET, SGD),
    Bench("minilm-trec", "minilm", "trec", 16, 1, 1, 3e-4, WIDE, {}, ADAMW, SCORED, 8, "linear", kinds=True),
    Bench("mbv2-flowers12", "mbv2-w0.35-flowers12", "flowers12", 8, 10, 4, 1e-3, SLOW, HALF, SGD, FEW, 16),
    Bench("mcunet-cifar10", "mcunet-5fps-flowers12", "cifar10", 8, 3, 1, 1e-3, SLOWER, HALF, SGD, FEW, 16),
    Bench("resnet56-cifar10", "resnet56-cifar10", "cifar10", 16, 6, 2, 3e-3, FAST, IMAGENET, SGD, FEW, 16),
    Bench("mbv2-cifar10", "mbv2-w0.35-flowers12", "cifar10", 8, 3, 1, 1e-3, SLOWER, HALF, SGD, FEW, 16),
    Bench("minilm-sst2", "minilm", "sst2", 16, 1, 1, 3e-4, WIDE, {}, ADAMW, SCORED, 8, "linear", kinds=True),
]


def prepare(bench: Bench, work: Path) -> tuple[pock.Task, pock.Task]:
    """Make the task to analyse, on parts of the training data, and the task to train and test."""
    folder = work / bench.name
    folder.mkdir(parents=True, exist_ok=True)
    if bench.model == "minilm":
        model = folder / "minilm.pt2"
        if not model.exists():
            write_sentences(SHARED / "text", bench.data, folder)
            export_minilm(folder, model, bench.batch)
        data = {part: folder / f"{part}.npz" for part in ("fit", "held", "train", "test")}
    else:
        model = SHARED / "models" / f"{bench.model}.pt2"
        data = {part: SHARED / bench.data / part for part in ("train", "test")}
        data |= {part: folder / part for part in ("fit", "held")}
        if not data["fit"].exists():
            _split(data["train"], data["fit"], data["held"])
    task = pock.Task(
        str(model), str(data["fit"]), str(data["held"]),
        pock.Recipe(bench.analysed, bench.rate, bench.lr_schedule),
        batch=None if bench.model == "minilm" else bench.batch, optimizer=bench.optimizer,
        ratios=bench.ratios, depths=bench.depths, seeds=1 if bench.kinds else 3,
        flip=bench.model != "minilm", preprocessing=bench.preprocessing,
    )  # fmt: skip
    recipe = replace(task.recipe, epochs=bench.epochs)
    return task, replace(task, data=str(data["train"]), validation=str(data["test"]), recipe=recipe)


def _split(source: Path, fit: Path, held: Path) -> None:
    """Link three quarters of each class into one folder, the last quarter into another."""
    for label in sorted(path for path in source.iterdir() if path.is_dir()):
        files = sorted(label.iterdir())
        for part, chosen in ((fit, files[: len(files) * 3 // 4]), (held, files[len(files) * 3 // 4 :])):
            (part / label.name).mkdir(parents=True)
            for file in chosen:
                (part / label.name / file.name).symlink_to(file)


def planned(task: pock.Task, scheme: pock.Scheme, budget: int | None) -> tuple[float, int]:
    """Compile a scheme for a budget: its bytes, infinite where it does not fit, and its number of micro-batches."""
    try:
        program = compile_task(task, scheme, memory_budget=budget, build=False)
    except MemoryBudgetError:
        return math.inf, 0
    return cost_of(program).memory, program.manifest["options"]["micro_batches"]


def largest(make: Callable[[int], pock.Scheme], limit: int, task: pock.Task, budget: int) -> int:
    """The largest number up to ``limit`` whose scheme fits the budget, 0 if none does; memory grows with the number."""
    if planned(task, make(limit), budget)[0] <= budget:
        return limit
    low, high = 0, limit - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = planned(task, make(middle), budget)[0] <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def trained(
    fit: pock.Task,
    final: pock.Task,
    sides: dict[str, list[pock.Scheme]],  # the largest first
    budgets: dict[str, int | None],
    rates: Sequence[float],
    seeds: int,
    kept: Path,
) -> dict[str, dict[str, Any]]:
    """Train and test each side, compiled for its budget, with the scheme and rate that are best on held-out data."""
    done: dict[str, float | None] = json.loads(kept.read_text()) if kept.exists() else {}

    def run(task: pock.Task, wanted: list[tuple[str, pock.Scheme, float, int]]) -> None:
        missing = [each for each in wanted if _key(task, *each[1:]) not in done]
        folder = kept.parent / "programs"
        jobs = [
            (_at(task, lr), scheme.rules, task.recipe.epochs, seed, folder, budgets[name])
            for name, scheme, lr, seed in missing
        ]
        with Workers() as pool:
            for number, result in pool.run(measure, jobs):
                done[_key(task, *missing[number][1:])] = result.score
                kept.write_text(json.dumps(done, indent=1))

    # Of equally good ones the smallest scheme is taken, at the lowest rate.
    tried = {name: list(itertools.product(schemes[::-1], rates)) for name, schemes in sides.items()}
    run(fit, [(name, scheme, lr, 0) for name, pairs in tried.items() for scheme, lr in pairs])

    def held_out(pair: tuple[pock.Scheme, float]) -> float:
        score = done[_key(fit, *pair, 0)]
        return -math.inf if score is None else score

    chosen = {name: max(pairs, key=held_out) for name, pairs in tried.items()}
    run(final, [(name, *pair, seed) for name, pair in chosen.items() for seed in range(seeds)])
    shutil.rmtree(kept.parent / "programs", ignore_errors=True)
    return {
        name: {
            "rules": scheme.rules,
            "lr": lr,
            "scores": [done[_key(final, scheme, lr, seed)] for seed in range(seeds)],
        }
        for name, (scheme, lr) in chosen.items()
    }


def _at(task: pock.Task, lr: float) -> pock.Task:
    return replace(task, recipe=replace(task.recipe, lr=lr))


def _key(task: pock.Task, scheme: pock.Scheme, lr: float, seed: int) -> str:
    return json.dumps([Path(task.data).stem, scheme.rules, lr, seed])


def one(bench: Bench, work: Path, seeds: int, console: Console) -> dict[str, Any]:
    """Analyse, search and train one task."""
    task, final = prepare(bench, work)
    folder = work / bench.name
    start = time.perf_counter()
    analyze = pock.analyze_kinds if bench.kinds else pock.analyze
    found = analyze(task, folder / "contributions.json", progress=_progress(console, bench.name))
    if not bench.kinds:  # for the rank agreement of first-order scores with measured contributions
        found = score(task, folder / "contributions.json")
    analysed = _spent(folder / "analysed.json", time.perf_counter() - start)
    full, _ = planned(final, pock.Scheme.full(), None)
    budget = int(full / BUDGET_DIVISOR)
    start = time.perf_counter()
    chosen = pock.search(found, memory=budget)
    searched = time.perf_counter() - start
    chosen.scheme.save(folder / "scheme.json")
    model, structure = open_model(final)
    sides = {"everything": [pock.Scheme.full()], "found": [chosen.scheme]}
    budgets: dict[str, int | None] = {"everything": None, "found": budget}
    limits = {budget: ""}
    held = int(planned(final, chosen.scheme, budget)[0])
    if held < budget / 2:  # the scheme needs far less than the budget: compare with others in as much as it takes
        limits[held] = ", in as much"
    for limit, words in limits.items():
        layers = largest(lambda k: pock.Scheme.last_layers(model, k), len(structure.layers), final, limit)
        biases = largest(lambda k: pock.Scheme.bias_only(model, last=k), len(structure.of_role("bias")), final, limit)
        sizes = [size for size in dict.fromkeys(layers // n for n in DEPTH_DIVISORS) if size]
        sides[f"last layers{words}"] = [pock.Scheme.last_layers(model, size) for size in sizes]
        sides[f"biases{words}"] = [pock.Scheme.bias_only(model, last=biases)] if biases else []
        budgets |= {f"last layers{words}": limit, f"biases{words}": limit}
    sides = {name: schemes for name, schemes in sides.items() if schemes}
    fit = replace(task, recipe=final.recipe)
    results = trained(fit, final, sides, budgets, bench.rates, seeds, folder / "runs.json")
    summed = chosen.choice.memory  # the scheme's memory by the sum of its parts, which all three searches use
    anything = replace(chosen.choices, gain_cap=math.inf)  # the objective without a cap
    objective = {"exact": best(anything, memory=summed).gain}
    for name, searcher in (("evolution", evolution), ("random", random_search)):
        tries = [searcher(anything, EVALUATIONS, seed, memory=summed) for seed in range(3)]
        objective[name] = statistics.mean(-np.inf if each is None else each.gain for each in tries)
    for name, result in results.items():
        scheme = pock.Scheme(result["rules"])
        result["memory"], result["micro_batches"] = planned(final, scheme, budgets[name])
        result["weights"] = sum(layer.weight in scheme.resolve(model) for layer in structure.layers)
    return {
        "task": bench.name, "settings": asdict(bench), "analysed_s": analysed,
        "runs": len(found.runs) + len(found.trials) + len(found.kinds), "searched_s": searched,
        "rank_agreement": rank_agreement(found), "full_memory": full,
        "full_within_budget": planned(final, pock.Scheme.full(), budget), "plans": chosen.plans, "results": results,
        "objective": objective, "time_error": chosen.time_model.error,
    }  # fmt: skip


def _spent(kept: Path, seconds: float) -> float:
    """Add the seconds of an analysis to those before it was interrupted."""
    total: float = seconds + (json.loads(kept.read_text()) if kept.exists() else 0.0)
    kept.write_text(json.dumps(total))
    return total


def _progress(console: Console, name: str) -> Callable[[str, int, int], None]:
    def show(what: str, done: int, count: int) -> None:
        if done % 20 == 0 or done == count:
            console.print(f"{name}: {what}: {done} of {count}")

    return show


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Tabulate results, one row a task and scheme."""
    found = Table()
    for name in ("task", "trained", "weights", "lr", "test score, seeds", "mean", "MiB", "of full", "micro-batches"):
        found.add_column(name)
    for record in records:
        for at, (name, result) in enumerate(record["results"].items()):
            scores = [float("nan") if each is None else each for each in result["scores"]]
            memory = result["memory"]
            found.add_row(
                "" if at else record["task"], name, str(result["weights"]), f"{result['lr']:g}",
                " / ".join(f"{each:.2f}" for each in scores),
                f"{statistics.mean(scores):.2f}", f"{memory / MIB:.2f}", f"1/{record['full_memory'] / memory:.1f}",
                str(result["micro_batches"]),
            )  # fmt: skip
        found.add_section()
    return found


def searches(records: Sequence[dict[str, Any]]) -> Table:
    """Tabulate searches, one row a task: objectives, run times, and rank agreement of first-order scores."""
    found = Table()
    for name in ("task", "exact", "evolution", "random", "runs", "analysis s", "search s", "rank of biases, weights"):
        found.add_column(name)
    for record in records:
        ranks = record["rank_agreement"]
        found.add_row(
            record["task"], *(f"{record['objective'][name]:.4g}" for name in ("exact", "evolution", "random")),
            str(record["runs"]), f"{record['analysed_s']:.0f}", f"{record['searched_s']:.1f}",
            ", ".join(f"{ranks[what]:.2f}" for what in ("biases", "weights") if what in ranks) or "-",
        )  # fmt: skip
    return found


def main(
    only: Annotated[list[str] | None, typer.Option(help="Names of tasks, or beginnings of them")] = None,
    seeds: int = 3,
    work: Path = Path("/tmp/pock-schemes"),  # noqa: S108
    json_output: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Run the tasks and print the tables."""
    warnings.simplefilter("ignore")
    console, records = Console(width=140), []
    for bench in TASKS:
        if only and not any(bench.name.startswith(name) for name in only):
            continue
        records.append(one(bench, work, seeds, console))
        console.print(table(records))
        console.print(searches(records))
        if json_output is not None:
            json_output.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    typer.run(main)
