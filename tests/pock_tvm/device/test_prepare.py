"""Frozen weights are prepared one at a time, and constants are held once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.device import prepare
from pock_tvm.device.memory import ALIGNMENT, LARGE, aligned

WIDTH, LAYERS = 256, 6


class Masked(nn.Module):
    """Layers of equal size that all read one mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            mask = torch.arange(WIDTH) % 3 != 0
            x = torch.where(mask, torch.tanh(layer(x)), x)
        return x


@pytest.fixture(scope="module")
def program() -> pock.Program:
    torch.manual_seed(0)
    exported = torch.export.export(Masked().eval(), (torch.zeros(64, WIDTH),))
    return pock.compile(exported, scheme=pock.Scheme({"*.bias": "full"}), loss="mse", check=False)


def test_one_weight_at_a_time_exists_beside_the_results(program, monkeypatch) -> None:
    temporaries: list[int] = []
    run = prepare.Preparation.run

    def watched(self: prepare.Preparation) -> None:
        call = self.call

        def count(kernel: str, addresses: list[int]) -> None:
            temporaries.append(sum(array.nbytes for array in self._temporaries.values()))
            call(kernel, addresses)

        self.call = count
        run(self)

    monkeypatch.setattr(prepare.Preparation, "run", watched)
    pock.Trainer(program)
    assert temporaries and max(temporaries) <= 4 * WIDTH * WIDTH
    assert program.manifest["entries"]["prepare"]["arena_bytes"] <= 4 * WIDTH * WIDTH


def test_equal_constants_are_one(program) -> None:
    large = [array for array in program.constants.values() if array.size == WIDTH]
    assert len(large) == 1
    tables = [entry["table"] for entry in program.manifest["entries"].values()]
    named = {tensor["name"] for table in tables for tensor in table if tensor["name"].startswith("constant.")}
    assert named == set(program.constants)


@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, 5 * 2**20])
def test_memory_is_zero_aligned_and_writable(size: int) -> None:
    array = aligned([size], "uint8")
    assert array.shape == (size,) and not array.any() and (not size or array.ctypes.data % ALIGNMENT == 0)
    array[...] = 1
    assert array.sum() == size


def test_a_saved_program_is_mapped_and_reads_what_it_was_saved_with(program, tmp_path) -> None:
    program.save(tmp_path / "net.pock")
    loaded = pock.Program.load(tmp_path / "net.pock")
    for name, array in program.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], array)
        with pytest.raises(ValueError, match="read-only"):
            loaded.weights[name][...] = 0
    loaded.release()
    np.testing.assert_array_equal(loaded.weights["layers.0.weight"], program.weights["layers.0.weight"])
    assert bytes(loaded.kernels) == program.kernels


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_a_trainer_holds_weights_once(tmp_path) -> None:
    """Measured in a process of its own: what it takes beside the sum that the program tells is small."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(1024, 1024), nn.Tanh())]
    exported = torch.export.export(nn.Sequential(*layers).eval(), (torch.zeros(64, 1024),))
    program = pock.compile(exported, scheme=pock.Scheme({"*.bias": "full"}), loss="mse", check=False)
    program.save(tmp_path / "net.pock", slim=True)
    result = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(tmp_path / "net.pock")], capture_output=True, text=True, check=True
    )
    told = sum(program.memory()[name] for name in ("parameters", "optimizer_state", "gradient_sums", "arena"))
    peak = int(result.stdout)
    assert told > 24 * 2**20
    assert peak <= 1.05 * told + 8 * 2**20


RESIDENT = """
import re, sys, pathlib
import pock_tvm.device.runtime
from pock_tvm.device.trainer import Trainer
from pock_tvm.device.profile import example

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text()).group(1))

pathlib.Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
trainer = Trainer(sys.argv[1])
for _ in range(2):
    trainer.step(*example(trainer.program), lr=0.01)
print(1024 * (kilobytes("VmHWM") - before))
"""
