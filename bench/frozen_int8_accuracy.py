"""Test accuracy of schemes whose frozen layers compute in eight bits, against float32, paired by seed.

    python bench/frozen_int8_accuracy.py [--seeds 10] [--only flowers12] [--json out.json]

Needs ../shared/data. Both programs of a pair start from the same weights and see the same batches in the same order. A
row: mean accuracies in percent, and the mean difference in points with its 95 % interval (Student's t over seeds).
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from fine_tuning import SHARED, SIZES, TASKS, Task, steps, test_batches
from rich.console import Console
from rich.table import Table
from scipy.stats import t

import pock_tvm as pock
from pock_tvm.training.data import ImageFolder, shuffled_batches

SCHEMES = ("head", "PockEngine")
CONFIDENCE = 0.95


def programs(task: Task, name: str) -> tuple[pock.Program, pock.Program]:
    """Compile a scheme in float, and with its frozen layers in eight bits, calibrated on training images."""
    exported = torch.export.load(SHARED / "models" / f"{task.model}.pt2")
    images = ImageFolder(
        SHARED / task.data / "train", "x", (task.batch, 3, *SIZES[task.name]), task.preprocessing, has_target=False
    )
    make_scheme, _ = task.schemes[name]
    options: dict[str, Any] = {"scheme": make_scheme(exported), "optimizer": task.optimizer, "batch": task.batch}
    options["batch_norm"] = "frozen"
    samples = shuffled_batches(images, task.batch)
    floats = pock.compile(exported, check=False, **options)
    return floats, pock.compile(exported, frozen="int8", calibrate_with=samples, **options)


def accuracies(both: tuple[pock.Program, pock.Program], task: Task, lr: float, seed: int) -> tuple[float, float]:
    """Fine-tune both programs on the same batches; return their test accuracies in percent."""
    trainers = [pock.Trainer(program, threads=1) for program in both]
    for (x, y), rate in steps(task, lr, seed):
        for trainer in trainers:
            trainer.step(x, y, lr=rate)
    test = test_batches(task)
    floats, eight_bits = (100 * trainer.evaluate(test)["accuracy"] for trainer in trainers)
    return floats, eight_bits


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the mean of differences, and half the width of its interval."""
    count = len(differences)
    half = t.ppf((1 + CONFIDENCE) / 2, count - 1) * statistics.stdev(differences) / count**0.5
    return statistics.mean(differences), float(half)


def main(
    seeds: Annotated[int, typer.Option(min=2)] = 10,
    only: str | None = None,
    json_output: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Run the tasks, and print a row for each scheme."""
    torch.set_num_threads(1)
    console, records = Console(width=120), []
    for task in TASKS:
        if only not in (None, task.name):
            continue
        for name in SCHEMES:
            both = programs(task, name)
            quantized = both[1].manifest["quantized"]
            pairs = [accuracies(both, task, task.schemes[name][1], seed) for seed in range(seeds)]
            mean, half = interval([eight_bits - floats for floats, eight_bits in pairs])
            records.append(
                {
                    "task": task.name,
                    "trained": name,
                    "layers": len(quantized["layers"]),
                    "error": quantized["check"]["error"],
                    "pairs": pairs,
                    "difference": mean,
                    "half": half,
                }
            )
            if json_output is not None:
                json_output.write_text(json.dumps(records, indent=1))
    table = Table("task", "trained", "layers in int8", "error of outputs", "float %", "int8 %", "difference, points")
    for row in records:
        floats, eight_bits = (f"{statistics.mean(side):.2f}" for side in zip(*row["pairs"], strict=True))
        table.add_row(
            row["task"], row["trained"], str(row["layers"]), f"{row['error']:.1%}", floats, eight_bits,
            f"{row['difference']:+.2f} ± {row['half']:.2f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
