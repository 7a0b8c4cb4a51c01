"""A state goes on in a program of another scheme, optimizer, batch, or number of micro-batches."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.device.machine import machine_triple
from pock_tvm.errors import CheckpointError

SCHEMES: dict[str, dict[str, Any]] = {
    "narrow": {"*": "frozen", "conv.bias": "full", "conv.weight": [0, 2], "head.weight": [0, 2, 5]},
    "wide": {"*": "frozen", "*.bias": "full", "conv.weight": "full", "head.weight": [0, 1, 2, 4, 5]},
    "apart": {"*": "frozen", "conv.bias": "full", "conv.weight": [1], "head.weight": [1, 3]},
    "full": {"*": "full"},
}
OPTIMIZERS = {"adamw": pock.AdamW(), "adam": pock.Adam(), "sgd": pock.SGD(momentum=0.9), "plain": pock.SGD()}
LR = 0.05


class Net(nn.Module):
    """A convolution along one axis, whose weight is stored with four axes, between linear layers."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Linear(6, 8), nn.Conv1d(3, 8, 3), nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(torch.relu(self.stem(x))))).mean(1)


def network(classes: int = 4, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net(classes).eval()


@functools.cache
def program(scheme: str, optimizer: str = "sgd", batch: int = 4, classes: int = 4, **options: Any) -> pock.Program:
    exported = torch.export.export(network(classes), (torch.zeros(batch, 3, 6),))
    made = {"scheme": pock.Scheme(SCHEMES[scheme]), "optimizer": OPTIMIZERS[optimizer]}
    return pock.compile(exported, check=False, **made, **options)


def batches(count: int, size: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((size, 3, 6)).astype("float32"), rng.integers(0, 4, size)) for _ in range(count)]


def saved(path: Path, *made: Any, steps: int = 3, **options: Any) -> pock.Trainer:
    """A trainer after some steps, and its checkpoint."""
    trainer = pock.Trainer(program(*made, **options), threads=1)
    for x, y in batches(steps, trainer.program.manifest["inputs"][0]["shape"][0]):
        trainer.step(x, y, lr=LR)
    trainer.save(path)
    return trainer


def states(path: Path) -> dict[str, np.ndarray]:
    """What a file holds, read by the library alone."""
    return safetensors.numpy.load_file(path)


def test_a_wider_scheme_goes_on_as_pytorch_would(tmp_path) -> None:
    """Momentum moves by channel; channels that were not trained before begin with none."""
    saved(tmp_path / "a.ckpt", "narrow")
    trainer = pock.Trainer(program("wide"))
    restored = trainer.restore(tmp_path / "a.ckpt")
    assert not restored.dropped
    assert "24 of 72 elements of momentum_buffer of 'conv.weight'" in restored.added
    assert "momentum_buffer of 'head.bias'" in restored.added

    model, buffers = network(), {}
    for number, (x, y) in enumerate(batches(6)):
        if number >= 3:
            trainer.step(x, y, lr=LR)
        rules = SCHEMES["narrow" if number < 3 else "wide"]
        model.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        for name, parameter in model.named_parameters():
            rule = rules.get(name, rules.get("*.bias", "frozen") if name.endswith("bias") else "frozen")
            mask = torch.full_like(parameter, float(rule == "full"))
            if isinstance(rule, list):
                mask[:, rule] = 1
            buffers[name] = 0.9 * buffers.get(name, 0) * mask + parameter.grad * mask
            parameter.data -= LR * buffers[name]
    for name, array in trainer.weights().items():
        np.testing.assert_allclose(array, model.state_dict()[name].numpy(), atol=2e-6, err_msg=name)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_narrower_scheme_is_refused_until_it_may_drop(tmp_path, optimizer: str) -> None:
    wide = saved(tmp_path / "a.ckpt", "wide", optimizer)
    trainer = pock.Trainer(program("narrow", optimizer))
    before = trainer.weights()
    with pytest.raises(CheckpointError, match=r"would be lost: .* of .*and \d more\. Compile .* allow_drop=True"):
        trainer.restore(tmp_path / "a.ckpt")
    assert trainer.steps == 0 and trainer.restored is None
    for name, array in trainer.weights().items():
        np.testing.assert_array_equal(array, before[name])
    restored = trainer.restore(tmp_path / "a.ckpt", allow_drop=True)
    assert restored.dropped and not restored.added
    for name, array in trainer.weights().items():  # weights stay, trained here or not
        np.testing.assert_array_equal(array, wide.weights()[name])
    trainer.save(tmp_path / "b.ckpt")
    old, new = states(tmp_path / "a.ckpt"), states(tmp_path / "b.ckpt")
    for name, array in new.items():
        if name.startswith("state."):
            kept = {"conv.weight": [0, 2], "head.weight": [0, 2, 4]}.get(name.split(".", 2)[2])  # among those of "wide"
            np.testing.assert_array_equal(array, old[name] if kept is None else old[name][:, kept], name)


def test_parts_that_share_no_channel(tmp_path) -> None:
    saved(tmp_path / "a.ckpt", "narrow")
    trainer = pock.Trainer(program("apart"))
    restored = trainer.restore(tmp_path / "a.ckpt", allow_drop=True)
    assert "momentum_buffer of 'conv.weight'" not in restored.kept
    assert any("momentum_buffer of 'conv.weight'" in each for each in restored.dropped)
    assert any("momentum_buffer of 'conv.weight'" in each for each in restored.added)
    assert "the weight 'conv.weight'" in restored.kept


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"micro_batches": 2}),
        ({"micro_batches": 2}, {}),
        ({"micro_batches": 2}, {"micro_batches": 4}),
        ({}, {"batch": 8}),
        ({}, {"memory_budget": "1MB"}),
        ({}, {"target": f'{{"kind": "llvm", "mtriple": "{machine_triple().replace("_linux", "-linux-gnu")}"}}'}),
    ],
    ids=str,
)
def test_another_program_of_the_same_scheme_takes_everything(tmp_path, old: dict, new: dict) -> None:
    first = saved(tmp_path / "a.ckpt", "narrow", "adamw", **old)
    other = pock.Trainer(program("narrow", "adamw", **new), threads=1)
    restored = other.restore(tmp_path / "a.ckpt")
    assert not restored.added and not restored.dropped and not restored.warnings
    other.save(tmp_path / "b.ckpt")
    a, b = states(tmp_path / "a.ckpt"), states(tmp_path / "b.ckpt")
    for name in {*a, *b}:
        if "gradient_sum" not in name:
            np.testing.assert_array_equal(a[name], b[name], name)
    (x, y), size = batches(1, 8)[0], other.program.manifest["inputs"][0]["shape"][0]
    if size == 4:
        assert other.step(x[:4], y[:4], lr=LR) == pytest.approx(first.step(x[:4], y[:4], lr=LR), rel=1e-5)
        for name, array in first.weights().items():
            np.testing.assert_allclose(other.weights()[name], array, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("steps", "count"), [(4, 2), (3, 1)])
def test_another_number_of_steps_an_update(tmp_path, steps: int, count: int) -> None:
    """Updates are counted, not steps: Adam's correction depends on them. Gradients of a begun update would be lost."""
    saved(tmp_path / "a.ckpt", "narrow", "adamw", steps=steps, accumulate=2)
    trainer = pock.Trainer(program("narrow", "adamw", accumulate=4))
    if steps % 2:
        with pytest.raises(CheckpointError, match="would be lost: the gradients of 1 steps since the last update"):
            trainer.restore(tmp_path / "a.ckpt")
    trainer.restore(tmp_path / "a.ckpt", allow_drop=bool(steps % 2))
    assert (trainer.steps, trainer._updates()) == (steps, (count, 0))
    assert not any(trainer._arrays[name].any() for name in trainer._states if name.startswith("gradient_sum"))
    for x, y in batches(4):
        trainer.step(x, y, lr=LR)
    assert (trainer.steps, trainer._updates()) == (steps + 4, (count + 1, 0))


def test_within_an_update(tmp_path) -> None:
    """Gradient sums move like any state, and the number of steps is the same in both programs."""
    first = saved(tmp_path / "a.ckpt", "narrow", "adamw", steps=3, accumulate=2)
    other = pock.Trainer(program("narrow", "adamw", accumulate=2, micro_batches=2))
    other.restore(tmp_path / "a.ckpt")
    for x, y in batches(3):
        assert other.step(x, y, lr=LR) == pytest.approx(first.step(x, y, lr=LR), rel=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "dropped", "added", "updates"),
    [
        ("sgd", "adamw", "momentum_buffer", "exp_avg", 0),  # moments that are all new begin with a new count
        ("adamw", "sgd", "exp_avg", "momentum_buffer", 0),
        ("adamw", "plain", "exp_avg", None, 3),
        ("plain", "adamw", None, "exp_avg", 0),
        ("plain", "sgd", None, "momentum_buffer", 0),
        ("adam", "adamw", None, None, 3),
    ],
)
def test_another_optimizer(tmp_path, old: str, new: str, dropped: str | None, added: str | None, updates: int) -> None:
    saved(tmp_path / "a.ckpt", "narrow", old)
    trainer = pock.Trainer(program("narrow", new))
    if dropped:
        with pytest.raises(CheckpointError, match=f"would be lost: {dropped} of 'conv.weight'"):
            trainer.restore(tmp_path / "a.ckpt")
    restored = trainer.restore(tmp_path / "a.ckpt", allow_drop=dropped is not None)
    assert any(dropped in each for each in restored.dropped) if dropped else not restored.dropped
    assert any(added in each for each in restored.added) if added else not restored.added
    assert trainer._updates() == (updates, 0)


def test_adam_that_trains_more_says_how_its_first_steps_differ(tmp_path) -> None:
    saved(tmp_path / "a.ckpt", "narrow", "adamw")
    with pytest.warns(pock.PockWarning, match=r"Adam counts 3 updates .* up to 3\.2 times as large as usual"):
        pock.Trainer(program("wide", "adamw")).restore(tmp_path / "a.ckpt")


def test_a_fresh_state_loses_nothing_anywhere(tmp_path) -> None:
    saved(tmp_path / "a.ckpt", "wide", "adamw", steps=0)
    assert not pock.Trainer(program("narrow", "sgd")).restore(tmp_path / "a.ckpt").dropped


def test_a_head_of_other_classes_is_another_weight(tmp_path) -> None:
    saved(tmp_path / "a.ckpt", "wide")
    trainer = pock.Trainer(program("wide", classes=3))
    with pytest.raises(CheckpointError, match=r"would be lost: the weight 'head\.(bias|weight)'"):
        trainer.restore(tmp_path / "a.ckpt")
    own = trainer.weights()["head.weight"]
    restored = trainer.restore(tmp_path / "a.ckpt", allow_drop=True)
    assert any("momentum_buffer of 'head.weight'" in each for each in restored.dropped)
    np.testing.assert_array_equal(trainer.weights()["head.weight"], own)


def test_other_frozen_weights_are_noticed_whatever_may_be_dropped(tmp_path) -> None:
    saved(tmp_path / "a.ckpt", "narrow")
    model = network()
    model.stem.bias.data[3] += 1e-3
    exported = torch.export.export(model, (torch.zeros(4, 3, 6),))
    other = pock.compile(exported, scheme=pock.Scheme(SCHEMES["narrow"]), optimizer=OPTIMIZERS["sgd"], check=False)
    old = replace(other, manifest={name: each for name, each in other.manifest.items() if name != "weight_crc32"})
    for each in (other, old):  # programs of older versions have no checksums in their manifests
        trainer = pock.Trainer(each)
        for allow_drop in (False, True):
            with pytest.raises(
                CheckpointError, match=r"other frozen weights than the program's: 'stem\.bias'\. Compile"
            ):
                trainer.restore(tmp_path / "a.ckpt", allow_drop=allow_drop)


def test_trained_weights_stay_where_the_new_program_freezes_them(tmp_path) -> None:
    first = saved(tmp_path / "a.ckpt", "wide", "plain")
    trainer = pock.Trainer(program("narrow", "plain"), threads=1)
    trainer.restore(tmp_path / "a.ckpt")
    x, _ = batches(1)[0]
    np.testing.assert_allclose(trainer.predict(x), first.predict(x), atol=1e-6)
    trainer.save(tmp_path / "b.ckpt")
    back = pock.Trainer(program("wide", "plain"), threads=1)
    back.restore(tmp_path / "b.ckpt")
    for name, array in first.weights().items():
        np.testing.assert_array_equal(back.weights()[name], array)
