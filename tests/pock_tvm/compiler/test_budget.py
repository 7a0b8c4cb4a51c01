"""Training within a budget of memory."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.quantities import parse_bytes
from relay_passes.memory import recompute_cheap


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU()) for _ in range(6)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return torch.export.export(model.eval(), (torch.zeros(2, 3, 16, 16),))


def steps(program: pock.Program, size: int = 16) -> tuple[list[float], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    trainer = pock.Trainer(program)
    batches = [(rng.standard_normal((2, 3, size, size)).astype("float32"), rng.integers(0, 4, 2)) for _ in range(3)]
    return [trainer.step(x, y, lr=0.1) for x, y in batches], trainer.weights()


def used(program: pock.Program) -> int:
    memory = program.memory()
    return memory["arena"] + memory["optimizer_state"] + memory["gradient_sums"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_budget_changes_memory_and_nothing_else(exported, accumulate) -> None:
    options = {"optimizer": pock.SGD(momentum=0.9), "accumulate": accumulate, "micro_batches": 1}
    whole = pock.compile(exported, **options)
    budget = int(0.7 * used(whole))
    small = pock.compile(exported, memory_budget=budget, **options)
    assert used(small) <= budget < used(whole)
    kernels = [[call[0] for call in p.manifest["entries"]["train_step"]["calls"]] for p in (whole, small)]
    assert len(kernels[1]) > len(kernels[0]) and set(kernels[1]) == set(kernels[0]), "kernels run again, no others"
    (losses, weights), (small_losses, small_weights) = steps(whole), steps(small)
    assert losses == small_losses
    for name, array in weights.items():
        np.testing.assert_array_equal(array, small_weights[name], name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_budget_that_recomputation_cannot_meet_is_met_in_micro_batches(exported, accumulate) -> None:
    options = {"optimizer": pock.SGD(momentum=0.9), "accumulate": accumulate}
    whole = pock.compile(exported, **options)
    budget = int(0.6 * used(whole))
    small = pock.compile(exported, memory_budget=budget, **options)
    assert used(small) <= budget and small.manifest["options"]["micro_batches"] == 2
    (losses, weights), (small_losses, small_weights) = steps(whole), steps(small)
    assert small_losses == pytest.approx(losses, rel=1e-5)
    for name, array in weights.items():
        np.testing.assert_allclose(array, small_weights[name], rtol=1e-4, atol=1e-6, err_msg=name)
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype("float32")
    np.testing.assert_allclose(pock.Trainer(small).predict(x), pock.Trainer(whole).predict(x), rtol=1e-4, atol=1e-6)


def test_what_needs_the_whole_batch_meets_a_budget_without_micro_batches(exported) -> None:
    options = {"batch_norm": "batch", "optimizer": pock.SGD(momentum=0.9)}
    whole = pock.compile(exported, **options)
    small = pock.compile(exported, memory_budget=int(0.7 * used(whole)), **options)
    assert used(small) <= 0.7 * used(whole) and small.manifest["options"]["micro_batches"] == 1
    with pytest.raises(pock.PockError, match="batch_norm='batch' needs the whole batch"):
        pock.compile(exported, micro_batches=2, **options)
    with pytest.raises(pock.PockError, match="micro_batches is a number of parts of a batch, at least 1, not 0"):
        pock.compile(exported, micro_batches=0)
    with pytest.raises(pock.PockError, match="a batch of 2 cannot be cut into 3 equal micro-batches"):
        pock.compile(exported, micro_batches=3)


class Gated(nn.Module):
    """Attention whose weights a gate scales: both the weights and what is left of them are read backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 192) for _ in range(4))

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            query, key, value = layer(x).chunk(3, -1)
            x = x + (torch.softmax(query @ key.mT, -1) * gate) @ value
        return x


def test_what_is_cheap_is_computed_again_unasked(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape).astype("float32") for shape in ((4, 128, 64), (4, 128, 128))]
    exported = torch.export.export(Gated().eval(), tuple(torch.from_numpy(array) for array in inputs))
    scheme = pock.Scheme.bias_only(exported)
    small = pock.compile(exported, scheme=scheme, loss="mse")
    monkeypatch.setattr(recompute_cheap, "SHARES", [])
    whole = pock.compile(exported, scheme=scheme, loss="mse")
    assert used(small) < 0.95 * used(whole)
    losses = [[pock.Trainer(program).step(inputs, inputs[0], lr=0.01) for _ in range(2)] for program in (small, whole)]
    assert losses[0] == losses[1]
    time = [sum(c["flops"] for c in program.manifest["kernels"].values()) for program in (small, whole)]
    assert time[0] == time[1], "kernels run again, no others"


def test_too_small_a_budget_names_the_smallest(exported) -> None:
    with pytest.raises(pock.PockError, match="the smallest that would do is") as error:
        pock.compile(exported, memory_budget="1KB")
    smallest = int(re.search(r"is (\d+) bytes", str(error.value))[1])
    assert used(pock.compile(exported, memory_budget=smallest)) <= smallest


def test_a_budget_that_is_met_costs_nothing(exported) -> None:
    assert pock.compile(exported, memory_budget="1GB").memory() == pock.compile(exported).memory()


@pytest.mark.parametrize(("text", "size"), [("64MB", 64_000_000), ("1.5 GiB", 3 * 2**29), (77, 77), ("2kib", 2048)])
def test_amounts_of_memory(text, size) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "64 parsecs", "-3MB", True])
def test_what_is_no_amount_is_refused(text) -> None:
    with pytest.raises(pock.PockError, match="is no amount of memory"):
        parse_bytes(text)


def test_winograd_is_given_up_for_memory() -> None:
    """Its transforms are larger than what they transform; in a frozen network nothing can be computed again instead."""
    torch.manual_seed(0)
    convolutions = [nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()) for _ in range(3)]
    model = nn.Sequential(nn.Conv2d(3, 64, 1), *convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))
    exported = torch.export.export(model.eval(), (torch.zeros(2, 3, 32, 32),))
    scheme = pock.Scheme.head_only(exported)
    whole = pock.compile(exported, scheme=scheme)
    small = pock.compile(exported, scheme=scheme, memory_budget=int(0.7 * used(whole)), micro_batches=1)
    assert used(small) <= 0.7 * used(whole)
    (losses, weights), (expected, same) = steps(small, 32), steps(whole, 32)
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, same[name], rtol=1e-3, atol=1e-5)
