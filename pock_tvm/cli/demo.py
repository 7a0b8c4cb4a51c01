"""The demo: pretrain a small network on digits, then personalise it to a user whose digits look different.

Needs nothing but what pip installed: the digits are scikit-learn's. Everything is trained by compiled programs,
pretraining included; PyTorch fine-tunes the same network beside them.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from ..compiler.driver import compile as compile_program
from ..device.optimizers import SGD
from ..device.trainer import Trainer
from ..errors import PockError
from ..schemes.scheme import Rule, Scheme

BATCH = 16
PRETRAINING, PERSONALISING = (20, 0.01), (15, 0.003)
"""Epochs and learning rate of both phases. At five times these rates units die in some runs, here and in PyTorch."""
SPARSE: dict[str, Rule] = {"*": "frozen", "*.bias": "full", "4.weight": 0.5, "6.weight": 0.5, "9.*": "full"}
MIB = 2**20

Samples = tuple[np.ndarray, np.ndarray]


def run() -> None:
    """Run the demo and print its table."""
    try:
        import torch
    except ImportError as error:
        raise PockError("the demo makes its network with PyTorch: pip install 'pock-tvm[torch]'") from error
    warnings.simplefilter("ignore")
    console = Console()
    everyone, user, test = _digits()
    torch.manual_seed(0)
    model = _network().eval()
    exported = torch.export.export(model, (torch.zeros(BATCH, 1, 16, 16),))

    console.print(f"Pretraining on {len(everyone[1])} digits as everyone writes them …")
    pretrainer = Trainer(compile_program(exported, optimizer=SGD(momentum=0.9)))
    _train(pretrainer, everyone, *PRETRAINING)
    model.load_state_dict(pretrainer.state_dict())
    exported = torch.export.export(model, (torch.zeros(BATCH, 1, 16, 16),))
    before = pretrainer.evaluate([test])["accuracy"]
    console.print(f"One user writes on a dark screen that she holds at an angle: accuracy {100 * before:.1f} %.")
    console.print(f"Personalising on {len(user[1])} of her digits …\n")

    table = Table(title="personalised")
    for name in ("trained", "accuracy %", "step ms", "memory MiB"):
        table.add_column(name, justify="left" if name == "trained" else "right")
    for name, scheme in (
        ("head", Scheme.head_only(exported)),
        ("sparse", Scheme(SPARSE)),
        ("everything", Scheme.full()),
    ):
        program = compile_program(exported, scheme=scheme, optimizer=SGD(momentum=0.9))
        trainer = Trainer(program)
        step = _train(trainer, user, *PERSONALISING)
        memory = program.memory()
        size = memory["arena"] + memory["optimizer_state"]
        table.add_row(name, *_row(trainer.evaluate([test])["accuracy"], step, size))
    table.add_section()
    table.add_row("PyTorch, everything", *_row(*_train_torch(model, user, test)))
    console.print(table)
    console.print(
        "Memory is what training adds to the weights: activations and temporaries, gradients, optimizer state."
    )


def _network() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 10),
    )  # fmt: skip


def _digits() -> tuple[Samples, Samples, Samples]:
    """Load digits for pretraining, and, inverted and rotated, a user's digits for training and for testing."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16).astype("float32").repeat(2, axis=2).repeat(2, axis=3)
    order = np.random.default_rng(0).permutation(len(labels))
    everyone, user, test = np.split(order, [1000, 1400])
    drifted = 1 - np.rot90(images, axes=(2, 3))
    return (
        (images[everyone], labels[everyone]),
        (np.ascontiguousarray(drifted[user]), labels[user]),
        (np.ascontiguousarray(drifted[test]), labels[test]),
    )


def _batches(samples: Samples, epochs: int) -> Iterator[Samples]:
    rng = np.random.default_rng(0)
    images, labels = samples
    for _ in range(epochs):
        order = rng.permutation(len(labels))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            yield images[chosen], labels[chosen]


def _train(trainer: Trainer, samples: Samples, epochs: int, lr: float) -> float:
    """Train, and return the median step time in seconds."""
    times = []
    for x, y in _batches(samples, epochs):
        start = time.perf_counter()
        trainer.step(x, y, lr=lr)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _train_torch(model: Any, user: Samples, test: Samples) -> tuple[float, float, int]:
    """Fine-tune by PyTorch; return accuracy, median step time in seconds, and bytes beside the weights."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=PERSONALISING[1], momentum=0.9)
    times, saved = [], {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for x, y in _batches(user, PERSONALISING[0]):
        start = time.perf_counter()
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    with torch.no_grad():
        right = (model(torch.from_numpy(test[0])).argmax(1).numpy() == test[1]).mean()
    kept = sum(size for pointer, size in saved.items() if pointer not in weights)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return float(right), statistics.median(times), kept + 2 * gradients


def _row(accuracy: float, step: float, size: int) -> tuple[str, str, str]:
    return f"{100 * accuracy:.1f}", f"{1e3 * step:.2f}", f"{size / MIB:.3f}"
