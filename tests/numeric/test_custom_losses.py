"""Losses that are functions of the user's, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import pock_tvm as pock
from tests.numeric.parity import TARGET

RATE, STEPS = 0.05, 3
CLASSES = np.array([0, 4, 2, 1])


def sharpened(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Focal loss."""
    surprise = functional.cross_entropy(outputs, target, reduction="none")
    return ((1 - torch.exp(-surprise)) ** 2 * surprise).mean()


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, "float32")


LOSSES: dict[str, tuple[Callable[[Any, Any], Any], np.ndarray]] = {
    "weighted classes": (torch.nn.CrossEntropyLoss(weight=torch.linspace(0.5, 1.5, 5), ignore_index=2), CLASSES),
    "soft labels": (functional.cross_entropy, np.exp(normal(4, 5)) / np.exp(normal(4, 5)).sum(1, keepdims=True)),
    "focal": (sharpened, CLASSES),
}


def trained_by_torch(model: torch.nn.Module, loss: Callable[[Any, Any], Any], x: torch.Tensor, y: Any) -> list[float]:
    optimizer, losses = torch.optim.SGD(model.parameters(), RATE), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def assert_equal_steps(
    exported: torch.export.ExportedProgram, loss: Any, function: Callable[[Any, Any], Any], x: np.ndarray, y: Any
) -> None:
    program = pock.compile(exported, loss=loss, check_with=(x, y), target=TARGET)
    trainer, module = pock.Trainer(program), exported.module()
    ours = [trainer.step(x, y, lr=RATE) for _ in range(STEPS)]
    target = {key: torch.from_numpy(each) for key, each in y.items()} if isinstance(y, dict) else torch.from_numpy(y)
    np.testing.assert_allclose(ours, trained_by_torch(module, function, torch.from_numpy(x), target), rtol=1e-5)
    for name, weight in module.named_parameters():
        np.testing.assert_allclose(trainer.weights()[name], weight.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_function_equals_pytorch(name: str) -> None:
    function, y = LOSSES[name]
    torch.manual_seed(0)
    exported = torch.export.export(torch.nn.Linear(6, 5), (torch.zeros(4, 6),))
    assert_equal_steps(exported, function, function, normal(4, 6), y)


class Heads(torch.nn.Module):
    """Classes and boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.kind, self.box = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3), torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.tanh(self.trunk(x))
        return {"kind": self.kind(y), "box": self.box(y)}


def of_both(outputs: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> torch.Tensor:
    box = functional.l1_loss(outputs["box"], target["box"])
    return functional.cross_entropy(outputs["kind"], target["kind"]) + 0.3 * box


@pytest.fixture(scope="module")
def heads() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(Heads().eval(), (torch.zeros(4, 6),))


BOTH = {"kind": np.array([0, 2, 1, 1]), "box": normal(4, 4)}


def test_several_outputs_and_targets_by_name(heads: torch.export.ExportedProgram) -> None:
    assert_equal_steps(heads, pock.CustomLoss(of_both, BOTH), of_both, normal(4, 6), BOTH)


def test_what_a_step_refuses(heads: torch.export.ExportedProgram) -> None:
    program = pock.compile(
        heads, loss=pock.CustomLoss(of_both, BOTH), check=False, scheme=pock.Scheme({"*bias": "full"}), target=TARGET
    )
    trainer = pock.Trainer(program)
    refused: list[tuple[Any, str]] = [
        (None, "needs a target y"),
        ({"kind": BOTH["kind"]}, "'box' of the target y is missing"),
        (BOTH | {"box": BOTH["box"][:2]}, "'target.box' has the shape"),
        (BOTH | {"box": BOTH["kind"][:, None].repeat(4, 1)}, "'target.box' is of type int64"),
    ]
    for y, complaint in refused:
        with pytest.raises(pock.PockError, match=complaint):
            trainer.step(normal(4, 6), y, lr=RATE)
    with pytest.raises(pock.PockError, match="compute it from what predict returns"):
        trainer.evaluate([(normal(4, 6), BOTH)])
    assert trainer.steps == 0


class Learned(torch.nn.Module):
    """A loss with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, outputs: Any, target: Any) -> torch.Tensor:
        return self.scale * of_both(outputs, target)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no example": ({"loss": of_both}, "loss=pock.CustomLoss"),
    "no number": ({"loss": pock.CustomLoss(lambda o, _t: o["box"].mean(0), BOTH)}, r"gives float32 \[4\]"),
    "parameters": ({"loss": pock.CustomLoss(Learned(), BOTH)}, "has a parameter 'scale'"),
    "a fault in it": (
        {"loss": pock.CustomLoss(lambda o, _t: o["boxes"].mean(), BOTH)},
        "cannot export the loss function",
    ),
    "micro-batches": ({"loss": pock.CustomLoss(of_both, BOTH), "micro_batches": 2}, "leave micro_batches out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_loss_can_be(name: str, heads: torch.export.ExportedProgram) -> None:
    options, complaint = REFUSED[name]
    with pytest.raises(pock.PockError, match=complaint):
        pock.compile(heads, target=TARGET, **options)


def test_check_lists_the_obstacles_of_a_loss(heads: torch.export.ExportedProgram) -> None:
    assert not pock.check(heads, loss=pock.CustomLoss(of_both, BOTH))
    frozen = pock.Scheme({"box.*": "full"})
    [found] = pock.check(heads, loss=pock.CustomLoss(lambda o, _t: o["kind"].mean(), BOTH), scheme=frozen)
    assert "no gradient reaches" in found.reason
