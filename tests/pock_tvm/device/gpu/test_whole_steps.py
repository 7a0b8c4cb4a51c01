"""Whole training steps of the networks that people bring: on a GPU what they are on the CPU."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.device.parameters import FULL
from pock_tvm.device.state import TrainingState
from tests.conftest import SHARED
from tests.numeric import networks
from tests.numeric.parity import WEIGHT_SPACING, Batch
from tests.numeric.schemes import SCHEMES
from tests.schedules.kernels import first_device

MCUNET = SHARED / "models" / "mcunet-5fps-flowers12.pt2"
TOLERANCE = 1e-4
"""Largest difference of a loss, an update or a state, relative to the largest element of each."""
NOISE = 1e-6
"""Updates smaller than the largest by this factor are rounding: attention's key biases have no gradient."""
OPTIMIZERS = {"sgd": pock.SGD(momentum=0.9), "adamw": pock.AdamW(eps=1e-2)}
"""With a smaller eps AdamW makes an update of full size of a gradient that is nearly rounding alone."""


class Network(NamedTuple):
    """A network, its batches, and the learning rates that it takes large steps with, and no wild ones."""

    make: Callable[[], torch.export.ExportedProgram]
    batches: Callable[[np.random.Generator], list[Batch]]
    rates: Mapping[str, float]
    loss: str = "cross_entropy"


def mcunet() -> torch.export.ExportedProgram:
    """MCUNet with its trained weights, at an odd size."""
    if not MCUNET.exists():
        pytest.skip(f"needs the real network {MCUNET}")
    module = torch.export.load(MCUNET).module(check_guards=False)
    module._forward_pre_hooks.clear()  # they hold it to 128 px
    return torch.export.export(module, (torch.zeros(2, 3, 33, 33),))


def vit() -> torch.export.ExportedProgram:
    """A ViT of one block: five tokens, three heads."""
    sizes = {"hidden_size": 33, "num_attention_heads": 3, "intermediate_size": 17, "num_hidden_layers": 1}
    return networks.vit(34, 3, patch_size=17, **sizes)


def llama() -> torch.export.ExportedProgram:
    """A Llama of one block: seven tokens, three heads that share one key."""
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 1}
    return networks.llama(7, 3, hidden_size=30, intermediate_size=17, vocab_size=97, **heads)


NETWORKS = {
    "mcunet": Network(mcunet, networks.images((2, 3, 33, 33), 12), {"sgd": 1e-3, "adamw": 1e-3}),
    "vit": Network(vit, networks.images((3, 3, 34, 34), 10), {"sgd": 0.1, "adamw": 1e-2}),
    "llama": Network(llama, networks.texts((3, 7), 97), {"sgd": 0.3, "adamw": 1e-2}, "causal_lm"),
}
CASES = [
    ("mcunet", "full", "sgd"), ("mcunet", "sparse", "adamw"), ("mcunet", "biases", "sgd"),
    ("vit", "full", "adamw"), ("vit", "sparse", "sgd"), ("vit", "biases", "adamw"),
    ("llama", "full", "sgd"), ("llama", "sparse", "adamw"), ("llama", "biases", "sgd"),
]  # fmt: skip
"""Every pair of a network, a scheme and an optimizer, but not every three: drivers take seconds to compile each."""


@pytest.fixture(autouse=True)
def unoptimised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PoCL compile twice as fast: its numbers are wanted here, not its speed."""
    monkeypatch.setenv("PYOPENCL_BUILD_OPTIONS", "-cl-opt-disable")


@functools.cache
def exported(name: str) -> torch.export.ExportedProgram:
    return NETWORKS[name].make()


def trained(
    target: str, name: str, scheme: str, optimizer: str, steps: int
) -> tuple[pock.Program, list[float], TrainingState]:
    """The program of a case, the losses of its first steps, and the state behind them."""
    network, model = NETWORKS[name], exported(name)
    with warnings.catch_warnings(action="ignore", category=pock.PockWarning):
        program = pock.compile(
            model, target=target, scheme=SCHEMES[scheme](model), optimizer=OPTIMIZERS[optimizer], loss=network.loss,
            batch_norm="frozen", check=False,
        )  # fmt: skip
    trainer = pock.Trainer(program)
    batches = network.batches(np.random.default_rng(0))[:steps]
    losses = [trainer.step(inputs, target, lr=network.rates[optimizer]) for inputs, target in batches]
    return program, losses, trainer._state()


def assert_equal(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray] | None = None
) -> None:
    """Arrays of one kind by name, each relative to its largest element. Updates of the weights ``start`` are rounded as
    those are."""
    assert found.keys() == expected.keys() and expected
    sizes = {name: float(np.abs(array).max()) for name, array in expected.items()}
    rounding = NOISE * max(sizes.values())
    assert sum(size > rounding for size in sizes.values()) > 0.7 * len(sizes), "most are no rounding"
    for name, array in expected.items():
        most = TOLERANCE * sizes[name] if sizes[name] > rounding else 2 * rounding
        beyond = np.abs(found[name] - array) - (0 if start is None else WEIGHT_SPACING * np.abs(start[name]))
        assert float(beyond.max()) <= most, f"{name}: off by {beyond.max():.2g}, of {sizes[name]:.2g}"


def assert_trains_alike(target: str, case: tuple[str, str, str], steps: int) -> None:
    """Losses, updates and optimizer states are the CPU's, and nothing else has changed."""
    program, losses, here = trained("host", *case, steps)
    _, found, there = trained(target, *case, steps)
    assert len(set(losses)) == len(losses)
    np.testing.assert_allclose(found, losses, rtol=TOLERANCE)
    start = program.weights
    updates = [
        {name: state.weights[name].astype("float64") - start[name] for name in program.trained}
        for state in (there, here)
    ]
    for name, what in program.trained.items():
        if what != FULL:
            frozen = np.delete(updates[0][name], what["indices"], what["axis"])
            assert frozen.size and not frozen.any(), f"frozen channels of {name}"
    assert there.frozen == here.frozen, "weights that are frozen"
    assert_equal(*updates, start)
    for slot in {state.slot for state in here.states}:
        assert_equal(*({each.of: each.values for each in state.states if each.slot == slot} for state in (there, here)))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_steps_on_opencl_are_those_of_the_cpu(case: tuple[str, str, str]) -> None:
    first_device("opencl")
    assert_trains_alike("opencl", case, 3)


@pytest.mark.parametrize("case", [("vit", "sparse", "sgd"), ("llama", "full", "adamw")], ids="-".join)
def test_a_step_on_webgpu_is_that_of_the_cpu(case: tuple[str, str, str]) -> None:
    first_device("webgpu")
    assert_trains_alike("webgpu", case, 1)
