"""The gradients of attention are one kernel on CPUs, where all are wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from tests.schedules.kernels import first_device


class Heads(nn.Module):
    """Attention whose queries, keys and values have a layer and a function each, whose gradient follows attention's."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.end = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = nn.functional.scaled_dot_product_attention(q.tanh(), k.relu(), v.sigmoid())
        return self.end(attended.transpose(1, 2).flatten(2).mean(1))


def program(scheme: dict[str, Any], **options: Any) -> pock.Program:
    torch.manual_seed(0)
    exported = torch.export.export(Heads(), (torch.randn(4, 9, 12),))
    return pock.compile(exported, scheme=pock.Scheme({"*": "frozen"} | scheme), loss="cross_entropy", **options)


def names(made: pock.Program) -> set[str]:
    """The kernels of attention."""
    stems = {name.rsplit("_", 1)[0] for name in made.manifest["kernels"]}
    return {stem for stem in stems if stem.startswith("attention")}


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ({"*": "full"}, {"attention", "attention_gradients"}),
        ({"v.weight": "full"}, {"attention", "attention_value_gradient"}),
        ({"q.*": "full", "v.bias": "full"}, {"attention", "attention_query_gradient", "attention_value_gradient"}),
        ({"k.weight": 0.5}, {"attention", "attention_key_gradient"}),
        ({"end.*": "full"}, {"attention"}),
    ],
)
def test_gradients_are_joined_where_all_are_wanted(scheme: dict[str, Any], expected: set[str]) -> None:
    """``compile`` compares each with PyTorch."""
    assert names(program(scheme)) == expected


def test_a_gpu_has_a_kernel_for_each_gradient() -> None:
    first_device("opencl")
    of = ("query", "key", "value")
    assert names(program({"*": "full"}, target="opencl")) == {
        "attention",
        *(f"attention_{each}_gradient" for each in of),
    }


def test_frozen_attention_runs_in_slices() -> None:
    """It runs sample by sample: parts of the batch take the same memory one after the other."""
    rng = np.random.default_rng(0)
    whole, sliced = (program({"end.*": "full"}, micro_batches=count) for count in (1, 2))
    x, y = rng.standard_normal((4, 9, 12)).astype("float32"), rng.integers(0, 3, 4)
    losses = [pock.Trainer(each).step(x, y, lr=0.1) for each in (whole, sliced)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
