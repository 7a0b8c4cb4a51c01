"""Steps that meet numbers that are not finite: what has changed, what is said, and how a trainer goes on."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.device.errors import NonFiniteInputError
from pock_tvm.device.parameters import PREPARED
from pock_tvm.device.profile import example, profile
from relay_passes.memory import lower_to_executor
from relay_passes.memory.call_list import CallList, Check
from tests.pock_tvm.networks import small

BATCH = 4


class Gated(nn.Module):
    """Values times roots. Where a root is 0 its derivative is infinite, and times the 0 below it NaN: the loss stays
    finite, and so do the gradients of the head, which come first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.gate = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.tanh(self.first(x))) * torch.sqrt(self.gate * scale))


def gated(**options: Any) -> pock.Program:
    torch.manual_seed(0)
    exported = torch.export.export(Gated().eval(), (torch.rand(BATCH, 6), torch.rand(BATCH, 8)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pock.PockWarning)
        return pock.compile(exported, **({"loss": "mse", "check": False} | options))


def batch(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    x, scale = (rng.random(shape, dtype="float32") for shape in ((BATCH, 6), (BATCH, 8)))
    return {"x": x, "scale": scale + 0.5}, rng.random((BATCH, 3), dtype="float32")


def spoiled(what: str, value: float = np.nan) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A batch with one bad number; for ``loss`` and ``gradient`` with finite numbers that bring one about."""
    inputs, target = batch(9)
    if what in inputs:
        inputs[what][BATCH - 1, 3] = value
    elif what == "target":
        target[BATCH - 1, 1] = value
    elif what == "loss":
        target[BATCH - 1, 1] = 1e30  # its square overflows
    else:
        inputs["scale"][BATCH - 1, 3] = 0
    return inputs, target


def state_of(trainer: pock.Trainer) -> dict[str, bytes]:
    """Everything that a step may change, in bits."""
    kept = {name for name, parameter in trainer.program.parameters.items() if parameter.origin != PREPARED}
    arrays = {name: array.tobytes() for name, array in trainer._arrays.items() if name in kept}
    return arrays | {"steps": str(trainer.steps).encode()}


def changed(before: dict[str, bytes], trainer: pock.Trainer) -> set[str]:
    after = state_of(trainer)
    return {name for name in before if before[name] != after[name]}


OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"optimizer": pock.SGD(momentum=0.9)},
    "Adam with batch statistics": {"optimizer": pock.Adam(), "batch_norm": "batch"},
    "clipped": {"optimizer": pock.Adam(), "clip_norm": 1.0, "batch_norm": "batch"},
    "accumulated": {"optimizer": pock.SGD(momentum=0.9), "accumulate": 2, "batch_norm": "batch"},
    "accumulated and clipped": {"accumulate": 2, "clip_norm": 1.0},
    "micro-batches": {"optimizer": pock.Adam(), "micro_batches": 2},
    "micro-batches, accumulated": {"micro_batches": 2, "accumulate": 2},
    "guarded steps": {"optimizer": pock.SGD(momentum=0.9), "guard": "step", "batch_norm": "batch"},
    "guarded steps, accumulated": {"accumulate": 2, "guard": "step"},
}
UPDATES = ("SGD", "Adam with batch statistics")
"""Options with which updates come before the last gradient."""


@pytest.fixture(scope="module", params=OPTIONS)
def named(request) -> tuple[str, pock.Program]:
    return request.param, gated(**OPTIONS[request.param])


NAMES = {
    "x": "input 'x'",
    "scale": "input 'scale'",
    "target": "the target",
    "loss": "the loss",
    "gradient": "the gradient of 'gate'",
}
SOURCES = [(what, value) for what in ("x", "scale", "target") for value in (np.nan, np.inf, -np.inf)]


@pytest.mark.parametrize(("what", "value"), [*SOURCES, ("loss", 0)])
def test_a_bad_input_or_loss_changes_nothing(named, what, value) -> None:
    _, program = named
    trainer, twin = pock.Trainer(program), pock.Trainer(program)
    for seed in range(2):
        assert trainer.step(*batch(seed), lr=0.1) == twin.step(*batch(seed), lr=0.1)
    before = state_of(trainer)
    with pytest.raises(pock.NonFiniteError, match=f"^{NAMES[what]} is not finite: .* Nothing has changed") as caught:
        trainer.step(*spoiled(what, value), lr=0.1)
    assert isinstance(caught.value, NonFiniteInputError) == (what != "loss")
    assert changed(before, trainer) <= {name for name in before if name.startswith("gradient_sum.")}
    for seed in range(2, 4):
        assert trainer.step(*batch(seed), lr=0.1) == twin.step(*batch(seed), lr=0.1)
    assert state_of(trainer) == state_of(twin)


def test_a_bad_gradient_is_not_applied(named, tmp_path) -> None:
    options, program = named
    trainer, twin = pock.Trainer(program), pock.Trainer(program)
    for seed in range(2):
        assert trainer.step(*batch(seed), lr=0.1) == twin.step(*batch(seed), lr=0.1)
    trainer.save(tmp_path / "net.ckpt")
    before = state_of(trainer)
    with pytest.raises(pock.NonFiniteError, match=f"^{NAMES['gradient']} is not finite") as caught:
        trainer.step(*spoiled("gradient"), lr=0.1)
    if options in UPDATES:
        assert "restore a checkpoint" in str(caught.value)
        assert changed(before, trainer) and not changed(before, trainer) & {"gate", "norm.running_mean", "steps"}
        trainer.restore(tmp_path / "net.ckpt")
    else:
        assert "Nothing has changed" in str(caught.value)
    assert state_of(trainer) == before
    for seed in range(2, 4):
        assert trainer.step(*batch(seed), lr=0.1) == twin.step(*batch(seed), lr=0.1)
    assert state_of(trainer) == state_of(twin)


def test_steps_that_share_an_update_start_anew() -> None:
    program = gated(**OPTIONS["accumulated"] | {"batch_norm": "frozen"})
    trainer, twin = pock.Trainer(program), pock.Trainer(program)
    before = state_of(trainer)
    trainer.step(*batch(0), lr=0.1)
    with pytest.raises(pock.NonFiniteError, match=r"Earlier steps of the same update \(1\) are dropped"):
        trainer.step(*spoiled("gradient"), lr=0.1)
    assert state_of(trainer) == before
    for seed in range(1, 3):
        assert trainer.step(*batch(seed), lr=0.1) == twin.step(*batch(seed), lr=0.1)
    assert state_of(trainer) == state_of(twin) != before


def test_steps_since_an_update_are_counted_behind_a_checkpoint_of_another_program(tmp_path) -> None:
    """Of three steps each had an update of its own: the next one is the first of two."""
    options = OPTIONS["accumulated"] | {"batch_norm": "frozen"}
    single = pock.Trainer(gated(**options | {"accumulate": 1}))
    for seed in range(3):
        single.step(*batch(seed), lr=0.1)
    single.save(tmp_path / "single.ckpt")
    trainer = pock.Trainer(gated(**options))
    trainer.restore(tmp_path / "single.ckpt")
    before = state_of(trainer)
    trainer.step(*batch(3), lr=0.1)
    with pytest.raises(pock.NonFiniteError, match=r"Earlier steps of the same update \(1\) are dropped"):
        trainer.step(*spoiled("gradient"), lr=0.1)
    assert state_of(trainer) == before


class Weighted(nn.Module):
    """A loss whose gradient is four times its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((5,), 1e-3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight * x).sum() * 4


@pytest.mark.parametrize(
    ("clip_norm", "consequence"),
    [(None, r"Earlier steps of the same update \(1\) are dropped"), (1.0, "Nothing has changed")],
)
def test_sums_that_overflow_are_not_applied(clip_norm, consequence) -> None:
    """Both gradients are finite, and their sum is not."""
    exported = torch.export.export(Weighted(), (torch.ones(5),))
    trainer = pock.Trainer(pock.compile(exported, loss="output", accumulate=2, clip_norm=clip_norm, check=False))
    before = state_of(trainer)
    x = np.full(5, 1.6e38, "float32")
    trainer.step(x, lr=0.1)
    if clip_norm is not None:  # the norm reads the sum from elsewhere, and the first step's stays
        before = state_of(trainer)
    with pytest.raises(pock.NonFiniteError, match=f"the gradient of 'weight' .* {consequence}"):
        trainer.step(x, lr=0.1)
    assert state_of(trainer) == before


def test_a_trainer_with_a_spoiled_state_waits_for_a_checkpoint(tmp_path) -> None:
    trainer = pock.Trainer(gated(optimizer=pock.SGD(momentum=0.9)))
    trainer.save(tmp_path / "net.ckpt")
    weights = trainer.weights()
    with pytest.raises(pock.NonFiniteError):
        trainer.step(*spoiled("gradient"), lr=0.1)
    refused = [
        lambda: trainer.step(*batch(0), lr=0.1),
        lambda: trainer.predict(batch(0)[0]),
        lambda: trainer.evaluate([batch(0)]),
        lambda: trainer.save(tmp_path / "spoiled.ckpt"),
        trainer.weights,
        trainer.state_dict,
        lambda: trainer.optimizer_state("momentum_buffer"),
        lambda: trainer.load_state_dict(weights),
        lambda: copy.deepcopy(trainer),
    ]
    for call in refused:
        with pytest.raises(pock.NonFiniteError, match=r"goes on after restore\(…\): the gradient of 'gate'"):
            call()
    assert not (tmp_path / "spoiled.ckpt").exists()
    with pytest.raises(pock.PockError):
        trainer.restore(tmp_path / "missing.ckpt")
    with pytest.raises(pock.NonFiniteError):
        trainer.predict(batch(0)[0])
    trainer.restore(tmp_path / "net.ckpt")
    trainer.step(*batch(0), lr=0.1)


def ruined(trainer: pock.Trainer) -> bool:
    return not all((abs(array) < 1e6).all() for array in trainer.weights().values())


def test_without_a_guard_the_same_steps_ruin_the_weights() -> None:
    program = gated(guard="off", optimizer=pock.SGD(momentum=0.9))
    for what in NAMES:
        trainer = pock.Trainer(program)
        trainer.step(*spoiled(what), lr=0.1)
        assert ruined(trainer), what


@pytest.mark.parametrize("what", NAMES)
def test_a_missing_check_would_be_noticed(what, monkeypatch) -> None:
    kind = what if what in ("loss", "gradient") else "input"
    original = lower_to_executor.executor

    def incomplete(calls: CallList) -> Any:
        dropped = [
            dataclasses.replace(call, count=0) if isinstance(call, Check) and call.kind == kind else call
            for call in calls.calls
        ]
        return original(dataclasses.replace(calls, calls=tuple(dropped)))

    monkeypatch.setattr(lower_to_executor, "executor", incomplete)
    trainer = pock.Trainer(gated())
    if kind == "input":  # the loss tells, and does not know where from
        with pytest.raises(pock.NonFiniteError) as caught:
            trainer.step(*spoiled(what), lr=0.1)
        assert not str(caught.value).startswith(NAMES[what])
    else:
        trainer.step(*spoiled(what), lr=0.1)
        assert ruined(trainer)


def test_predictions_are_not_guarded() -> None:
    trainer = pock.Trainer(gated())
    output = trainer.predict(spoiled("x")[0])
    assert np.isnan(output[BATCH - 1]).all() and np.isfinite(output[: BATCH - 1]).all()


def test_a_guard_changes_no_number() -> None:
    programs = [gated(guard=guard, optimizer=pock.AdamW(), batch_norm="batch") for guard in ("off", "update", "step")]
    trainers = [pock.Trainer(program) for program in programs]
    for seed in range(3):
        losses = {trainer.step(*batch(seed), lr=0.1) for trainer in trainers}
        assert len(losses) == 1
    first, *others = (trainer.weights() for trainer in trainers)
    for other in others:
        for name, array in first.items():
            np.testing.assert_array_equal(array, other[name], name)
    assert programs[0].memory()["arena"] <= programs[2].memory()["arena"]


def test_a_profile_needs_no_finite_numbers() -> None:
    trainer = pock.Trainer(gated())
    before = state_of(trainer)
    assert profile(trainer, *spoiled("gradient"), repeat=1)
    assert state_of(trainer) == before
    trainer.step(*batch(0), lr=0.1)


def test_images_are_checked_whatever_their_size() -> None:
    """A large tensor is checked by several cores."""
    exported = torch.export.export(
        nn.Sequential(nn.AvgPool2d(64), nn.Flatten(), nn.Linear(12, 3)), (torch.zeros(8, 3, 128, 128),)
    )
    trainer = pock.Trainer(pock.compile(exported, check=False))
    x, y = example(trainer.program)
    for at in (0, x["input"].size // 2 + 1, x["input"].size - 1):
        bad = {"input": x["input"].copy()}
        bad["input"].flat[at] = np.inf
        with pytest.raises(NonFiniteInputError):
            trainer.step(bad, y, lr=0.1)
    assert trainer.step(x, y, lr=0.1) > 0


@pytest.mark.parametrize("guard", ["updates", None, True, 1])
def test_a_guard_has_a_name(guard) -> None:
    with pytest.raises(pock.PockError, match="guard is 'update', 'step' or 'off'"):
        pock.compile(small(BATCH), guard=guard)


def test_doubles_are_checked_as_doubles() -> None:
    """1e300 is finite, and infinite as a float32."""

    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - PyTorch's name
            return super().forward((input * 1e-100).float())

    exported = torch.export.export(Scaled(3, 2).eval(), (torch.zeros(4, 3, dtype=torch.float64),))
    trainer = pock.Trainer(pock.compile(exported, loss="mse", check=False))
    x, y = np.full((4, 3), 1e100), np.zeros((4, 2), "float32")
    assert np.isfinite(trainer.step(x, y, lr=0.0))
    x[3, 2] = np.inf
    with pytest.raises(NonFiniteInputError):
        trainer.step(x, y, lr=0.0)
    x[3, 2] = 1e300
    with pytest.raises(pock.NonFiniteError, match="the loss"):
        trainer.step(x, y, lr=0.0)
