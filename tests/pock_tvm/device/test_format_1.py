"""Programs and checkpoints of the first format, in tests/data: still loaded, still trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.device.profile import profile
from pock_tvm.device.runtime import machine_triple

DATA = Path(__file__).parents[2] / "data"
LOSSES = [1.0415327548980713, 1.0415327548980713, 0.9089856743812561]
"""Of the three steps behind the checkpoint, as the version that wrote it took them."""
pytestmark = pytest.mark.skipif(machine_triple() != "x86_64-linux", reason="the program is one for x86-64 with Linux")


def steps(trainer: pock.Trainer) -> list[float]:
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype("float32")
    return [trainer.step(x, np.arange(4), lr=0.01) for _ in range(3)]


def test_an_old_program_goes_on_from_an_old_checkpoint(tmp_path) -> None:
    trainer = pock.Trainer(DATA / "format-1.pock")
    trainer.restore(DATA / "format-1.ckpt")
    assert trainer.steps == 4
    trainer.program.save(tmp_path / "new.pock")
    trainer.save(tmp_path / "new.ckpt")
    np.testing.assert_allclose(steps(trainer), LOSSES, rtol=1e-5)
    again = pock.Trainer(tmp_path / "new.pock")
    again.restore(tmp_path / "new.ckpt")
    np.testing.assert_allclose(steps(again), LOSSES, rtol=1e-5)


def test_what_an_old_program_says_of_itself() -> None:
    program = pock.Program.load(DATA / "format-1.pock")
    assert program.memory() == {
        "parameters": 2960,
        "optimizer_state": 2144,
        "gradient_sums": 1072,
        "arena": 2944,
        "scratch": 0,  # its kernels allocate their own
        "lower_bound": 2944,
    }
    assert program.trained["0.bias"] == "full"
    x = np.zeros((4, 3, 6, 6), "float32")
    assert profile(pock.Trainer(program), x, np.arange(4), repeat=1)
