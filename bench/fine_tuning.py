"""Fine-tunes real networks on real images, by compiled programs and by PyTorch, and compares accuracy and time.

    python bench/fine_tuning.py [--seeds 3] [--only flowers12] [--json out.json]

Needs ../shared/data. Both sides see the same batches in the same order.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import pock_tvm as pock
from pock_tvm.training.beside import Preprocessing
from pock_tvm.training.data import Augmentation, ImageFolder, evaluation_batches
from pock_tvm.training.recipe import Recipe, TrainingSteps

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Task:
    """A network, a data set, and the options of the fine-tuning."""

    name: str
    model: str
    data: str
    preprocessing: Preprocessing
    batch: int
    epochs: int
    schemes: dict[str, tuple[Callable[[Any], pock.Scheme], float]]
    """Name -> scheme of the exported network, learning rate."""
    optimizer: pock.SGD


TASKS = [
    Task(
        "flowers12", "mcunet-5fps-flowers12", "flowers12", Preprocessing((0.5,) * 3, (0.5,) * 3), batch=8, epochs=10,
        schemes={
            "head": (pock.Scheme.head_only, 0.01),
            "head + biases of the last 22 layers": (lambda e: pock.Scheme.bias_only(e, last=22), 0.01),
            "PockEngine": (pock.Scheme.pockengine, 0.01),
        },
        optimizer=pock.SGD(momentum=0.9),
    ),
    Task(
        "cifar10", "resnet20-cifar10", "cifar10", Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), batch=16,
        epochs=6,
        schemes={
            "head": (pock.Scheme.head_only, 0.003),
            "head + BatchNorm": (lambda e: pock.Scheme({"*": "frozen", "*bn*": "full", "linear.*": "full"}), 0.003),
            "PockEngine": (pock.Scheme.pockengine, 0.003),
        },
        optimizer=pock.SGD(momentum=0.9, weight_decay=1e-4),
    ),
]  # fmt: skip


def steps(task: Task, lr: float, seed: int) -> Iterator[tuple[Batch, float]]:
    """Yield the training batches of a task, each with its learning rate."""
    shape = (task.batch, 3, *SIZES[task.name])
    data = ImageFolder(SHARED / task.data / "train", "x", shape, task.preprocessing, Augmentation(flip=True))
    for (x, y), rate in TrainingSteps(Recipe(task.epochs, lr), data, task.batch, seed):
        yield (x["x"], y), rate


SIZES = {"flowers12": (128, 128), "cifar10": (32, 32)}


def test_batches(task: Task) -> list[Batch]:
    """The test set of a task."""
    data = ImageFolder(SHARED / task.data / "test", "x", (task.batch, 3, *SIZES[task.name]), task.preprocessing)
    return [(x["x"], y) for x, y in evaluation_batches(data, task.batch)]


def ours(program: pock.Program, task: Task, lr: float, seed: int, test: list[Batch]) -> tuple[float, float]:
    """Fine-tune a program; return its accuracy, and the median seconds of a step."""
    trainer = pock.Trainer(program)
    times = []
    for (x, y), rate in steps(task, lr, seed):
        start = time.perf_counter()
        trainer.step(x, y, lr=rate)
        times.append(time.perf_counter() - start)
    return trainer.evaluate(test)["accuracy"], statistics.median(times)


def torchs(
    exported: Any, program: pock.Program, task: Task, lr: float, seed: int, test: list[Batch]
) -> tuple[float, float]:
    """Fine-tune in PyTorch, zeroing the gradients of frozen channels; accuracy, and the median seconds of a step."""
    module = torch.export.load(SHARED / "models" / f"{task.model}.pt2").module()
    masks = {}
    for name, parameter in module.named_parameters():
        what = program.trained.get(name)
        parameter.requires_grad_(what is not None)
        if isinstance(what, dict):
            mask = torch.zeros_like(parameter)
            mask.movedim(what["axis"], 0)[what["indices"]] = 1
            masks[parameter] = mask
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    o = task.optimizer
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=o.momentum, weight_decay=o.weight_decay)
    times = []
    for (x, y), rate in steps(task, lr, seed):
        start = time.perf_counter()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        for parameter, mask in masks.items():
            parameter.grad *= mask
        optimizer.step()
        times.append(time.perf_counter() - start)
    with torch.no_grad():
        right = [(module(torch.from_numpy(x)).argmax(1).numpy() == y) for x, y in test]
    return float(np.concatenate(right).mean()), statistics.median(times)


def main(
    seeds: int = 3, only: str | None = None, json_output: Annotated[Path | None, typer.Option("--json")] = None
) -> None:
    """Run the tasks and print a table each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    console, records = Console(width=120), []
    for task in TASKS:
        if only not in (None, task.name):
            continue
        exported = torch.export.load(SHARED / "models" / f"{task.model}.pt2")
        test = test_batches(task)
        table = Table(title=f"{task.model}, {task.epochs} epochs, batch {task.batch}")
        for name in (
            "trained",
            "ours, accuracy %",
            "mean",
            "PyTorch, accuracy %",
            "mean",
            "ours, step ms",
            "PyTorch, step ms",
        ):
            table.add_column(name)
        for name, (make_scheme, lr) in task.schemes.items():
            program = pock.compile(exported, scheme=make_scheme(exported), optimizer=task.optimizer, batch=task.batch)
            runs = [
                (ours(program, task, lr, seed, test), torchs(exported, program, task, lr, seed, test))
                for seed in range(seeds)
            ]
            ours_runs, torch_runs = zip(*runs, strict=True)
            table.add_row(
                name,
                *_cells(ours_runs),
                *_cells(torch_runs),
                *(f"{1e3 * statistics.median(t for _, t in side):.1f}" for side in (ours_runs, torch_runs)),
            )
            for system, side in (("pock", ours_runs), ("torch", torch_runs)):
                records += [
                    {
                        "task": task.name,
                        "trained": name,
                        "system": system,
                        "seed": seed,
                        "accuracy": accuracy,
                        "step_ms": 1e3 * step,
                    }
                    for seed, (accuracy, step) in enumerate(side)
                ]
        console.print(table)
    if json_output is not None:
        json_output.write_text(json.dumps(records, indent=1))


def _cells(runs: tuple[tuple[float, float], ...]) -> tuple[str, str]:
    accuracies = [100 * accuracy for accuracy, _ in runs]
    return " / ".join(f"{accuracy:.2f}" for accuracy in accuracies), f"{statistics.mean(accuracies):.2f}"


if __name__ == "__main__":
    typer.run(main)
