"""Analysis, search and report of networks that are not classifiers of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.reports.page import write_report


class Regression(nn.Module):
    """No bias anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(9, 24, bias=False)
        self.second = nn.Linear(24, 17, bias=False)
        self.last = nn.Linear(17, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class TwoInputs(nn.Module):
    """Words and numbers beside them, to several labels that may all be true."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(33, 16)
        self.numbers = nn.Linear(3, 16)
        self.norm = nn.LayerNorm(16)
        self.mixed = nn.Linear(16, 24)
        self.labels = nn.Linear(24, 3)

    def forward(self, ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(ids).mean(1) + self.numbers(numbers))
        return self.labels(torch.relu(self.mixed(x)))


class OwnLoss(nn.Module):
    """How well it gives back what it was given: there is no target."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(9, 24)
        self.narrow = nn.Linear(24, 4)
        self.wide = nn.Linear(4, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.wide(self.narrow(torch.relu(self.first(x)))) - x).square().mean()


def inputs_of(kind: str, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    numbers = rng.standard_normal((count, 3 if kind == "two inputs" else 9)).astype("float32")
    if kind == "own loss":
        return {"x": numbers}
    if kind == "regression":
        y = np.stack([numbers[:, 0] * numbers[:, 1], np.abs(numbers[:, 2])], 1)
        return {"x": numbers, "y": y.astype("float32")}
    ids = rng.integers(0, 33, (count, 5))
    y = np.stack([ids[:, 0] > 16, numbers[:, 0] > 0, ids[:, 1] < 5], 1)
    return {"ids": ids, "numbers": numbers, "y": y.astype("float32")}


@pytest.mark.parametrize(
    ("kind", "network", "loss"),
    [
        ("regression", Regression, "mse"),
        ("two inputs", TwoInputs, "bce_with_logits"),
        ("own loss", OwnLoss, "output"),
    ],
)
def test_a_scheme_is_found(kind: str, network: type[nn.Module], loss: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for part, count in (("train", 64), ("val", 32)):
        np.savez(tmp_path / f"{part}.npz", **inputs_of(kind, count, rng))
    example = {name: torch.from_numpy(array) for name, array in inputs_of(kind, 8, rng).items() if name != "y"}
    torch.export.save(torch.export.export(network().eval(), (), example), tmp_path / "net.pt2")
    optimizer: dict[str, Any] = {"kind": "adam", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    task = pock.Task(
        str(tmp_path / "net.pt2"), str(tmp_path / "train.npz"), str(tmp_path / "val.npz"), pock.Recipe(4, 0.02),
        loss=loss, optimizer=optimizer, ratios=(0.5, 1.0), seeds=1,
    )  # fmt: skip
    found = pock.analyze(task, tmp_path / "contributions.json", workers=1)
    assert all(run.score is not None for run in found.runs)
    exported = torch.export.load(task.model)
    options: dict[str, Any] = {"loss": loss, "optimizer": pock.Adam()}
    memory = pock.compile(exported, scheme=pock.Scheme.full(), build=False, **options).memory()
    budget = int(0.7 * (memory["arena"] + memory["optimizer_state"]))
    chosen = pock.search(found, memory=budget)
    assert chosen.cost.memory <= budget
    assert chosen.choice.gain <= pock.search(found).choice.gain
    program = pock.compile(exported, scheme=chosen.scheme, memory_budget=budget, **options)
    with np.load(task.data) as data:
        x = {name: data[name][:8] for name in example}
        losses = [pock.Trainer(program).step(x, data["y"][:8] if "y" in data else None, lr=0.01)]
    assert np.isfinite(losses).all()
    write_report(found, tmp_path / "report.html", scheme=chosen.scheme)
    assert "data:image/png" in (tmp_path / "report.html").read_text()
