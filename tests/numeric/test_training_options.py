"""Optimizers and losses with their options, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.device.program import kernel_calls
from relay_passes.training import append_update
from tests.numeric.parity import TARGET, TORCH_OPTIMIZERS, assert_parity
from tests.pock_tvm.networks import small

OPTIMIZERS: dict[str, tuple[pock.SGD | pock.Adam, Callable[..., torch.optim.Optimizer]]] = {
    "plain SGD": (pock.SGD(), lambda p, lr: torch.optim.SGD(p, lr)),
    "decay": (
        pock.SGD(momentum=0.9, weight_decay=0.1),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=0.1),
    ),
    "dampened momentum": (
        pock.SGD(momentum=0.9, dampening=0.3),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, dampening=0.3),
    ),
    "Nesterov": (
        pock.SGD(momentum=0.8, nesterov=True, weight_decay=0.1),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    "Adam": (pock.Adam(), lambda p, lr: torch.optim.Adam(p, lr)),
    "Adam with decay": (
        pock.Adam(betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1),
        lambda p, lr: torch.optim.Adam(p, lr, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1),
    ),
    "AdamW": (pock.AdamW(weight_decay=0.1), lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.1)),
}
SCHEME = pock.Scheme({"*": "full", "blocks.1.conv2.weight": 0.5, "stem.*": "frozen"})


def batches(target: Callable[[np.random.Generator], np.ndarray]):
    def make(rng: np.random.Generator):
        return [([rng.standard_normal((4, 3, 8, 8)).astype("float32")], target(rng)) for _ in range(4)]

    return make


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_equal_pytorch(name: str, monkeypatch) -> None:
    monkeypatch.setitem(TORCH_OPTIMIZERS, name, OPTIMIZERS[name])
    assert_parity(small(4), batches(lambda rng: rng.integers(0, 5, 4)), scheme=SCHEME, optimizer=name, lr=0.02)


@pytest.mark.parametrize("name", ["decay", "AdamW"])
def test_large_gradients_part_by_part_equal_pytorch(name: str, monkeypatch) -> None:
    """Each part of the weight's gradient is made and used before the next one exists."""
    monkeypatch.setitem(TORCH_OPTIMIZERS, name, OPTIMIZERS[name])
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.GELU(), torch.nn.Linear(40, 512, bias=False))
    exported = torch.export.export(model.eval(), (torch.randn(2, 3, 24),))

    def make(rng: np.random.Generator):
        shapes = (2, 3, 24), (2, 3, 512)
        return [
            ([rng.standard_normal(shapes[0], "float32")], rng.standard_normal(shapes[1], "float32")) for _ in range(3)
        ]

    options = {"scheme": pock.Scheme.full(), "loss": "mse", "optimizer": name, "lr": 0.1}
    whole = assert_parity(exported, make, **options)
    monkeypatch.setattr(append_update, "LARGE_GRADIENT", 4 * 512 * 16)
    monkeypatch.setattr(append_update, "FEWEST_ROWS", 8)
    parts = assert_parity(exported, make, **options)
    updates = [
        sum(name.startswith(("sgd", "adam")) for name, _ in kernel_calls(program.manifest["entries"]["train_step"]))
        for program in (whole, parts)
    ]
    assert updates == [3, 2 + 4], "the 40 x 512 gradient is made 10 rows at a time"
    saved = 4 * 512 * 20 if TARGET != "host" else 0  # on CPUs the product updates the weight: no gradient is in memory
    assert parts.memory()["arena"] < whole.memory()["arena"] - saved


LOSSES: dict[str, tuple[pock.Loss, Callable[[np.random.Generator], np.ndarray]]] = {
    "label smoothing": (pock.Loss("cross_entropy", label_smoothing=0.1), lambda rng: rng.integers(0, 5, 4)),
    "ignored labels": (
        pock.Loss("cross_entropy", ignore_index=2, label_smoothing=0.2),
        lambda rng: np.array([2, 0, 4, 2]),
    ),
    "mse": (pock.Loss("mse"), lambda rng: rng.standard_normal((4, 5)).astype("float32")),
    "bce": (pock.Loss("bce_with_logits"), lambda rng: rng.integers(0, 2, (4, 5)).astype("float32")),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_pytorch(name: str) -> None:
    loss, target = LOSSES[name]
    assert_parity(small(4), batches(target), scheme=SCHEME, loss=loss, lr=0.05)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_equal_pytorch(name: str, count: int) -> None:
    """Labels that do not count are not spread evenly."""
    loss, target = LOSSES[name]
    assert_parity(small(4), batches(target), scheme=SCHEME, loss=loss, lr=0.05, micro_batches=count)


class Maps(torch.nn.Module):
    """Logits and a map, of images with a table that all of them share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.narrow = torch.nn.Conv2d(3, 17, 3, stride=2, padding=1), torch.nn.Conv2d(17, 7, 1)
        self.head = torch.nn.Linear(7, 5)

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.narrow(torch.relu(self.conv(x + table)))
        return self.head(y.mean((2, 3))), y


def test_micro_batches_of_transposed_convolutions_equal_pytorch() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.ConvTranspose2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3)
    )
    exported = torch.export.export(model.eval(), (torch.randn(4, 3, 5, 6),))

    def make(rng: np.random.Generator):
        return [
            ([rng.standard_normal((4, 3, 5, 6), "float32")], rng.standard_normal((4, 2, 7, 9), "float32"))
            for _ in range(2)
        ]

    assert_parity(exported, make, scheme=pock.Scheme.full(), loss=pock.Loss("mse"), lr=0.05, micro_batches=2)


@pytest.mark.parametrize(("batch", "count"), [(6, 2), (7, 7)])
def test_micro_batches_of_odd_sizes_equal_pytorch(batch: int, count: int) -> None:
    """No part begins at an address that vectors are aligned to."""
    torch.manual_seed(0)
    exported = torch.export.export(Maps().eval(), (torch.randn(batch, 3, 7, 5), torch.randn(3, 7, 5)))

    def make(rng: np.random.Generator):
        shapes = (batch, 3, 7, 5), (3, 7, 5)
        return [([rng.standard_normal(shape, "float32") for shape in shapes], rng.integers(0, 5, batch))] * 3

    program = assert_parity(exported, make, scheme=pock.Scheme.full(), lr=0.05, micro_batches=count)
    x, table = make(np.random.default_rng(1))[0][0]
    found = pock.Trainer(program).predict([np.concatenate([x, x[:2]]), table])
    for ours, theirs in zip(found, exported.module()(torch.from_numpy(x), torch.from_numpy(table)), strict=True):
        np.testing.assert_allclose(ours[:batch], theirs.detach(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours[batch:], theirs.detach()[:2], rtol=1e-4, atol=1e-6)


class Segments(torch.nn.Module):
    """A class for every pixel, and a second output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x)
        return y.mean(), y


@pytest.mark.parametrize(
    "loss", [pock.Loss("cross_entropy", output=1), pock.Loss("output")], ids=lambda loss: loss.kind
)
def test_losses_of_other_outputs_equal_pytorch(loss: pock.Loss) -> None:
    torch.manual_seed(0)
    exported = torch.export.export(Segments().eval(), (torch.randn(4, 3, 8, 8),))
    target = (lambda rng: rng.integers(0, 4, (4, 8, 8))) if loss.kind == "cross_entropy" else (lambda _rng: None)
    assert_parity(exported, batches(target), scheme=pock.Scheme.full(), loss=loss, lr=0.05)
