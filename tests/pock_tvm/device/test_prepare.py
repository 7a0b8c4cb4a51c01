"""Frozen weights are prepared one at a time, and constants are held once."""

from __future__ import annotations

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
