"""Convolutions whose gradients update the weights, with a batch norm behind: ``compile`` compares with PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock


class Blocks(nn.Module):
    """Convolutions of small images to many channels, whose weights are larger than what they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1, stride=4, bias=False)
        self.wide = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.last = nn.Conv2d(64, 48, 3, padding=1)
        self.head = nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.wide(self.first(x).relu())).relu()
        return self.head(self.last(y).relu().mean((2, 3)))


def model() -> Blocks:
    torch.manual_seed(0)
    made = Blocks()
    nn.init.uniform_(made.norm.weight, 0.5, 2)
    nn.init.uniform_(made.norm.running_var, 0.5, 2)
    return made.eval()


def program(scheme: dict[str, Any] | None = None, **options: Any) -> pock.Program:
    exported = torch.export.export(model(), (torch.ones(1, 3, 16, 16),))
    chosen = pock.Scheme({"*": "frozen"} | scheme if scheme else {"*": "full"})
    given = {"scheme": chosen, "loss": "cross_entropy", "batch_norm": "frozen", **options}
    return pock.compile(exported, **given)


@pytest.fixture(scope="module")
def trained() -> pock.Program:
    return program(optimizer=pock.SGD(momentum=0.9))


def joint(made: pock.Program) -> list[int]:
    """How many operands and results the kernels have that compute a weight gradient and update the weight."""
    calls = made.manifest["entries"]["train_step"]["calls"]
    return sorted(len(call[1]) for call in calls if "_conv2d_weight_gradient" in call[0])


def test_a_gradient_updates_its_weight_and_sums_for_the_scale(trained: pock.Program) -> None:
    """The weight, its momentum, the rate, X and dY; with a batch norm also its scale, the sums, and scratch."""
    assert joint(trained) == [5, 5, 8]
    assert not any("channel_sum" in name and "multiply" in name for name in trained.manifest["kernels"])


def test_both_factors_and_the_scale_are_checked(trained: pock.Program) -> None:
    calls = trained.manifest["entries"]["train_step"]["calls"]
    checks = [(call[4], len(call[1])) for call in calls if call[0] == "check" and call[5] == "wide.weight"]
    assert sorted(checks) == [("factor", 2), ("gradient", 1)]


def test_weights_and_scales_are_as_in_pytorch(trained: pock.Program) -> None:
    trainer, reference = pock.Trainer(trained), model().double()
    optimizer = torch.optim.SGD(reference.parameters(), momentum=0.9, lr=1e-2)
    rng = np.random.default_rng(0)
    for label in range(3):
        x, y = rng.standard_normal((1, 3, 16, 16)).astype("float32"), np.array([label])
        trainer.step(x, y, lr=1e-2)
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(torch.tensor(x).double()), torch.tensor(y)).backward()
        optimizer.step()
    wanted = dict(reference.named_parameters())
    for name, value in wanted.items():
        np.testing.assert_allclose(trainer.weights()[name], value.detach().numpy(), atol=1e-5)


def test_gradients_that_are_waited_for_stay() -> None:
    assert not joint(program(clip_norm=1.0, check=False))


def test_adam_returns_states_beside_the_sums() -> None:
    made = program({"wide.weight": "full", "norm.weight": "full"}, optimizer=pock.Adam())
    assert any(name.startswith("adam") and "weight_gradient" in name for name in made.manifest["kernels"])
