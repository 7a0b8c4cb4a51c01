"""Programs and checkpoints of every format there was, in tests/data: still loaded, still trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.device.machine import machine_triple
from pock_tvm.device.profile import profile

DATA = Path(__file__).parents[2] / "data"
BEHIND = {
    "format-1": (4, [1.0415327548980713, 1.0415327548980713, 0.9089856743812561]),
    "format-2": (5, [1.0415327548980713, 0.9089856743812561, 0.9089856743812561]),
}
"""By file the steps of the checkpoint, two of which share an update, and the losses of the next three as the version
that wrote it took them."""
pytestmark = pytest.mark.skipif(machine_triple() != "x86_64-linux", reason="the program is one for x86-64 with Linux")


def steps(trainer: pock.Trainer) -> list[float]:
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype("float32")
    return [trainer.step(x, np.arange(4), lr=0.01) for _ in range(3)]


@pytest.mark.parametrize("name", BEHIND)
def test_an_old_program_goes_on_from_an_old_checkpoint(name, tmp_path) -> None:
    count, losses = BEHIND[name]
    trainer = pock.Trainer(DATA / f"{name}.pock")
    trainer.restore(DATA / f"{name}.ckpt")
    assert trainer.steps == count
    trainer.program.save(tmp_path / "new.pock")
    trainer.save(tmp_path / "new.ckpt")
    np.testing.assert_allclose(steps(trainer), losses, rtol=1e-5)
    again = pock.Trainer(tmp_path / "new.pock")
    again.restore(tmp_path / "new.ckpt")
    np.testing.assert_allclose(steps(again), losses, rtol=1e-5)


@pytest.mark.parametrize("name", BEHIND)
def test_an_old_checkpoint_fits_the_program_compiled_anew_but_no_other(name) -> None:
    old, (_, losses) = pock.Program.load(DATA / "format-2.pock"), BEHIND[name]
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 4))
    layers.load_state_dict({name: torch.from_numpy(array) for name, array in old.weights.items()})
    exported = torch.export.export(layers.eval(), (torch.zeros(4, 3, 6, 6),))
    rules = old.manifest["scheme"]
    options = {"optimizer": pock.AdamW(), "accumulate": 2, "micro_batches": 2, "check": False}
    trainer = pock.Trainer(pock.compile(exported, scheme=pock.Scheme(rules), **options))
    trainer.restore(DATA / f"{name}.ckpt")
    np.testing.assert_allclose(steps(trainer), losses, rtol=1e-5)
    other = pock.Trainer(pock.compile(exported, scheme=pock.Scheme(rules | {"0.bias": "frozen"}), **options))
    with pytest.raises(pock.PockError, match="of an older format, which fits the program alone that wrote it"):
        other.restore(DATA / f"{name}.ckpt")


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
