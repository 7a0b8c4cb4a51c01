"""Dropout and noise: numbers by counter, the same in kernels and in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from torch.nn import functional
from tvm import te

import pock_tvm as pock
from pock_tvm.device import random
from schedules.kernels import random as kernels

WORDS = random.words_of(0x123456789ABCDEF0, 2**40 + 7)
COUNT = 1051


def test_the_generator_gives_its_known_answer() -> None:
    """The first vector of Random123's ``kat_vectors``, and with all bits set its second."""
    assert [f"{word:08x}" for word in random.words_drawn(np.zeros((1, 4), "uint32"), 0, 1)[0]] == [
        "6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["kept", "uniform", "normal"])
def test_kernels_draw_what_numpy_draws(name: str) -> None:
    options = {"rate": 0.3} if name == "kept" else {}
    words = te.placeholder((1, 5), "uint32", "words")
    kernel = getattr(kernels, "keep" if name == "kept" else name)(words, count=COUNT, stream=9, **options)
    wanted = getattr(random, name)(WORDS, 9, (COUNT,), **options)
    found = tvm.runtime.tensor(np.zeros_like(wanted))
    run = tvm.compile(te.create_prim_func([words, kernel]), "llvm")
    run(tvm.runtime.tensor(WORDS), found)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)
    both = getattr(random, name)(WORDS, 9, (2 * COUNT,), **options)
    run(tvm.runtime.tensor(random.words_of(0x123456789ABCDEF0, 2**40 + 7, 2)[1:]), found)
    np.testing.assert_allclose(found.numpy(), both[COUNT:], atol=1e-6)
    deviation = {"kept": 0.46, "uniform": 0.29, "normal": 1.0}[name]
    assert abs(wanted.mean() - {"kept": 0.7, "uniform": 0.5, "normal": 0.0}[name]) < 4 * deviation / COUNT**0.5
    assert wanted.std() == pytest.approx(deviation, abs=0.1)


class Dropping(nn.Module):
    """Every kind of dropout, a batch norm, and noise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.channels, self.elements, self.smooth = nn.Dropout2d(0.4), nn.Dropout(0.3), nn.AlphaDropout(0.2)
        self.attention, self.head = nn.MultiheadAttention(8, 2, 0.3, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.channels(torch.relu(self.norm(self.conv(x)))).flatten(2).mT
        y = self.elements(y + self.attention(y, y, y)[0])
        if self.training:
            y = y * (y.new_empty(len(y), 1, 1).bernoulli_(0.7) / 0.7)
        return self.smooth(self.head(y)) + 0.1 * torch.randn_like(y[..., :4])


X, Y = (np.random.default_rng(0).standard_normal(shape, "float32") for shape in ((2, 3, 6, 6), (2, 16, 4)))


@pytest.fixture(scope="module")
def dropping() -> pock.Program:
    torch.manual_seed(0)
    exported = torch.export.export(Dropping().train(), (torch.from_numpy(X),))
    with pytest.warns(pock.PockWarning, match="running statistics"):
        return pock.compile(exported, loss="mse", optimizer=pock.Adam(), accumulate=2)


def test_a_program_drops_as_pytorch_does_with_its_masks(dropping: pock.Program) -> None:
    check = dropping.manifest["check"]
    assert check["worst"]["difference"] < 1e-4
    assert not {name for name in check["unchecked"] if not name.endswith("in_proj_bias")}


def test_masks_depend_on_seed_and_step(dropping: pock.Program) -> None:
    one, same, other = pock.Trainer(dropping), pock.Trainer(dropping), pock.Trainer(dropping, seed=1)
    losses = [[trainer.step(X, Y, lr=0.0) for _ in range(3)] for trainer in (one, same, other)]
    assert losses[0] == losses[1]
    assert len({*losses[0], *losses[2]}) == 6


def test_a_resumed_run_draws_as_one_that_was_never_stopped(dropping: pock.Program, tmp_path: Path) -> None:
    one, stopped, resumed = pock.Trainer(dropping, seed=5), pock.Trainer(dropping, seed=5), pock.Trainer(dropping)
    losses = [one.step(X, Y, lr=0.01) for _ in range(6)]
    assert [stopped.step(X, Y, lr=0.01) for _ in range(4)] == losses[:4]
    stopped.save(tmp_path / "run.ckpt")
    resumed.restore(tmp_path / "run.ckpt")
    assert [resumed.step(X, Y, lr=0.01) for _ in range(2)] == losses[4:]
    assert all(np.array_equal(each, resumed.weights()[name]) for name, each in one.weights().items())


def test_predict_drops_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4)).eval()
    exported = torch.export.export(model, (torch.zeros(4, 6),))
    x = np.random.default_rng(0).standard_normal((4, 6), "float32")
    programs = [pock.compile(exported, loss="mse", dropout=dropout) for dropout in (None, True)]
    trainers = [pock.Trainer(program) for program in programs]
    for trainer in trainers:
        np.testing.assert_allclose(trainer.predict(x), model(torch.from_numpy(x)).detach(), rtol=1e-5, atol=1e-6)
    without, within = (trainer.step(x, np.zeros((4, 4), "float32"), lr=0.0) for trainer in trainers)
    mask = random.kept(random.words_of(0, 0), 0, (4, 8), 0.5)
    y = model[2](model[0](torch.from_numpy(x)) * torch.from_numpy(mask) * 2)
    assert within == pytest.approx(float(functional.mse_loss(y, torch.zeros(4, 4)).detach()), rel=1e-5)
    assert without != pytest.approx(within, rel=1e-3)
    parts = pock.Trainer(pock.compile(exported, loss="mse", dropout=True, micro_batches=4))
    assert parts.step(x, np.zeros((4, 4), "float32"), lr=0.0) == pytest.approx(within, rel=1e-6)
