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
    exported: torch.export.ExportedProgram,
    loss: Any,
    function: Callable[[Any, Any], Any],
    x: np.ndarray,
    y: Any,
    micro_batches: int | None = None,
) -> pock.Trainer:
    example = {"check_with": (x, y)} if callable(loss) else {}  # which only shows the target here
    program = pock.compile(exported, loss=loss, check=False, target=TARGET, micro_batches=micro_batches, **example)
    trainer, module = pock.Trainer(program), exported.module()
    ours = [trainer.step(x, y, lr=RATE) for _ in range(STEPS)]
    target = {key: torch.from_numpy(each) for key, each in y.items()} if isinstance(y, dict) else torch.from_numpy(y)
    np.testing.assert_allclose(ours, trained_by_torch(module, function, torch.from_numpy(x), target), rtol=1e-5)
    for name, weight in module.named_parameters():
        np.testing.assert_allclose(trainer.weights()[name], weight.detach(), rtol=1e-4, atol=1e-6)
    return trainer


@pytest.fixture(scope="module")
def layer() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(torch.nn.Linear(6, 5), (torch.zeros(4, 6),))


def value_of(trainer: pock.Trainer, function: Callable[[Any, Any], Any], x: np.ndarray, y: Any) -> float:
    """The loss of the outputs, by PyTorch."""
    return float(function(torch.from_numpy(np.array(trainer.predict(x))), torch.from_numpy(y)))


@pytest.mark.parametrize("name", LOSSES)
def test_a_function_equals_pytorch(name: str, layer: torch.export.ExportedProgram) -> None:
    function, y = LOSSES[name]
    trainer = assert_equal_steps(layer, function, function, normal(4, 6), y)
    x, y = normal(6, 6), np.concatenate([y, y[1:3]])
    if name == "weighted classes":
        with pytest.raises(pock.PockError, match="needs 4 samples at once: evaluate takes multiples of 4, not 6"):
            trainer.evaluate([(x, y)])
        x, y = x[:4], y[:4]
    expected = value_of(trainer, function, x, y)
    assert trainer.evaluate([(x, y)])["loss"] == pytest.approx(expected, rel=1e-5)


def of_all_kinds(o: torch.Tensor, t: dict[str, torch.Tensor]) -> torch.Tensor:
    log = functional.log_softmax(o, 1)
    return sum([
        functional.cross_entropy(o, t["class"], torch.linspace(0.5, 1.5, 5), label_smoothing=0.1),
        functional.cross_entropy(o[..., None], t["class"][:, None], ignore_index=2), functional.nll_loss(log, t["class"]),
        functional.kl_div(log, t["share"], reduction="batchmean"), functional.binary_cross_entropy(o.sigmoid(), t["share"]),
        functional.binary_cross_entropy_with_logits(o, t["share"], pos_weight=torch.arange(1.0, 6.0)),
        functional.multilabel_soft_margin_loss(o, (t["share"] > 0.2).float()), functional.l1_loss(o, t["value"]),
        functional.smooth_l1_loss(o, t["value"], beta=0.3), functional.huber_loss(o, t["value"], delta=0.5),
        functional.triplet_margin_loss(o, t["value"], t["share"]), functional.cosine_embedding_loss(o, t["value"], t["sign"]),
        functional.margin_ranking_loss(o[:, 0], o[:, 1], t["sign"], margin=0.2), sharpened(o, t["class"]),
    ])  # fmt: skip


def test_micro_batches_add_up_to_the_batch(layer: torch.export.ExportedProgram) -> None:
    sign = np.array([1, -1, -1, 1], "float32")
    y = {"class": CLASSES, "share": LOSSES["soft labels"][1], "value": normal(4, 5), "sign": sign}
    loss = pock.CustomLoss(of_all_kinds, y)
    trainer = assert_equal_steps(layer, loss, of_all_kinds, normal(4, 6), y, micro_batches=2)
    assert trainer.program.manifest["options"]["micro_batches"] == 2


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
    """In micro-batches, of which each needs the number of all labels that count."""
    assert_equal_steps(heads, pock.CustomLoss(of_both, BOTH), of_both, normal(4, 6), BOTH, micro_batches=4)


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
    with pytest.raises(pock.PockError, match=r"'target.box' has the shape"):
        trainer.evaluate([(normal(4, 6), BOTH | {"box": BOTH["box"][:2]})])
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
    "micro-batches": (
        {"loss": pock.CustomLoss(lambda o, _t: o["box"].std(), BOTH), "micro_batches": 2},
        r"the loss function cannot run in micro-batches: its 'relax\.\w+' needs several samples",
    ),
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
