"""Frozen weights that a model keeps in integers: they stay integers, and train as in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import pock_tvm as pock
from tests.numeric.parity import assert_parity

WIDTH = 128


class EightBits(nn.Module):
    """A layer with a weight of int8, and a scale for each output."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (WIDTH, WIDTH), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(WIDTH, 1) / 800)
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.float() * self.scale, self.bias)


class FourBits(EightBits):
    """The same with a weight of four bits, two in a byte."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randint(0, 256, (WIDTH, WIDTH // 2), dtype=torch.uint8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.stack([self.weight & 15, self.weight >> 4], dim=-1).reshape(WIDTH, WIDTH)
        return nn.functional.linear(x, (pairs.to(torch.int8) - 8) * (self.scale * 16), self.bias)


def test_integers_stay_integers() -> None:
    """Before and behind a trained layer, whose gradient passes them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        EightBits(), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), FourBits(), nn.Tanh(), EightBits()
    )
    exported = torch.export.export(model.eval(), (torch.zeros(4, WIDTH),))

    def batches(rng: np.random.Generator) -> list[Any]:
        return [([rng.standard_normal((4, WIDTH), "float32")], rng.standard_normal((4, WIDTH), "float32"))] * 2

    scheme = pock.Scheme({"*": "frozen", "2.weight": 0.5, "*.bias": "full"})
    program = assert_parity(exported, batches, scheme=scheme, loss="mse", lr=0.01)
    records = program.parameters.values()
    assert {record.dtype for record in records if record.name.endswith("weight")} == {"float32", "int8", "uint8"}
    assert sum(record.nbytes for record in records if record.origin == "prepared") < WIDTH * WIDTH
    assert program.memory()["arena"] < 3 * 4 * WIDTH * WIDTH, "the floats of one layer at a time, not of all three"
