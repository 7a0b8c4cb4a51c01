"""Training in 16 bits, on PoCL: as near to exact arithmetic as PyTorch's own mixed precision, in less memory."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.device.loss_scale import FIRST, GROWTH, LossScale
from pock_tvm.errors import NonFiniteError, OptionError
from tests.schedules.kernels import first_device

HALVES = ["bfloat16", "float16"]
LOSS = torch.nn.functional.cross_entropy


class Smooth(torch.nn.Module):
    """A convolution, a norm, two layers and a head, without a kink: rounding moves its gradients a little, and no
    more. ``gain`` multiplies the result, and so all gradients."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 32, 3, stride=2)
        self.norm, self.linear1, self.linear2 = torch.nn.LayerNorm(32), torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)
        self.head = torch.nn.Linear(32, 5)
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        x = x + self.linear2(torch.nn.functional.gelu(self.linear1(x)))
        return self.head(x.mean(1)) * self.gain


@pytest.fixture(scope="module", autouse=True)
def device() -> str:
    """The device's name, if there is one."""
    return first_device("opencl").name


def network(gain: float = 1.0) -> Smooth:
    torch.manual_seed(0)
    return Smooth(gain).eval()


def batch(size: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((size, 3, 17, 17), dtype="float32"), rng.integers(0, 5, size)
    return torch.from_numpy(x), torch.from_numpy(y)


def compiled(model: torch.nn.Module, **options: Any) -> pock.Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pock.PockWarning)
        exported = torch.export.export(model, (batch()[0],))
        return pock.compile(exported, **{"target": "opencl", "check": False} | options)


def gradients(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, np.ndarray]:
    model = copy.deepcopy(model)
    LOSS(model(x), y).backward()
    return {name: each.grad.double().numpy() for name, each in model.named_parameters()}


def update(trainer: pock.Trainer) -> dict[str, np.ndarray]:
    """The updates of steps of rate 1."""
    now = trainer.weights()
    return {name: trainer.program.weights[name].astype("float64") - now[name] for name in trainer.program.trained}


def distance(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest distance of a parameter's update, relative to its length."""
    return max(
        float(np.linalg.norm(value - expected[name]) / np.linalg.norm(expected[name])) for name, value in found.items()
    )


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("target", ["opencl", pytest.param("webgpu", marks=pytest.mark.slow)])
def test_an_update_is_as_exact_as_mixed_precision_in_pytorch(target: str, precision: str) -> None:
    first_device(target)
    model, (x, y) = network(), batch()
    exact = gradients(copy.deepcopy(model).double(), x.double(), y)
    with torch.autocast("cpu", getattr(torch, precision)):
        autocast = gradients(model, x, y)
    trainer = pock.Trainer(compiled(model, target=target, precision=precision))
    loss = trainer.step(x.numpy(), y.numpy(), lr=1.0)
    assert loss == pytest.approx(LOSS(model(x), y).item(), rel=5e-3 if precision == "bfloat16" else 1e-3)
    assert 1e-5 < distance(update(trainer), exact) < 1.1 * distance(autocast, exact)


def test_a_sparse_step_trains_the_same_channels() -> None:
    scheme = pock.Scheme({"linear1.weight": 0.25, "*.bias": "full", "head.*": "full"})
    (x, y), model = batch(), network()
    wide, narrow = (
        pock.Trainer(compiled(model, scheme=scheme, optimizer=pock.AdamW(), precision=each))
        for each in ("float32", "float16")
    )
    for trainer in (wide, narrow):
        trainer.step(x.numpy(), y.numpy(), lr=0.01)
    expected, found = update(wide), update(narrow)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name] == 0, value == 0, err_msg=name)


@pytest.mark.parametrize("precision", HALVES)
def test_memory_is_saved(precision: str) -> None:
    scheme = pock.Scheme({"head.*": "full", "linear1.weight": "full"})
    wide, narrow = (
        compiled(network(), scheme=scheme, precision=each, build=False).memory() for each in ("float32", precision)
    )
    assert narrow["arena"] < 0.65 * wide["arena"]
    assert narrow["parameters"] < 0.75 * wide["parameters"]  # trained ones stay float32


OVERFLOWING = {
    "a step": {},
    "momentum, clipping": {"optimizer": pock.SGD(momentum=0.9), "clip_norm": 1e6},
    "accumulation": {"accumulate": 2},
    "micro-batches": {"micro_batches": 2},
}


@pytest.mark.parametrize("name", OVERFLOWING)
def test_a_step_whose_gradients_overflow_is_taken_again(name: str) -> None:
    options = OVERFLOWING[name]
    count = options.get("accumulate", 1)
    model, (x, y) = network(gain=500.0), batch()
    exact = gradients(copy.deepcopy(model).double(), x.double(), y)
    trainer = pock.Trainer(compiled(model, precision="float16", **options))
    for step in range(count):
        trainer.step(x.numpy(), y.numpy(), lr=1.0)
        assert trainer.steps == step + 1
    assert trainer._scale is not None
    assert 1 < trainer._scale.value < FIRST
    assert distance(update(trainer), exact) < 0.02
    assert len(trainer.losses()) == 0


def test_queued_steps_are_told_in_order() -> None:
    model = network(gain=500.0)
    one, other = (pock.Trainer(compiled(model, precision="float16")) for _ in range(2))
    steps = [batch(seed=seed) for seed in range(3)]
    expected = [one.step(x.numpy(), y.numpy(), lr=1e-4) for x, y in steps]
    for x, y in steps:
        other.queue(x.numpy(), y.numpy(), lr=1e-4)
    assert other.losses() == expected


def test_a_gradient_that_no_scale_helps_changes_nothing() -> None:
    trainer = pock.Trainer(compiled(network(gain=1e6), precision="float16"))
    x, y = batch()
    before = trainer.weights()
    with pytest.raises(NonFiniteError, match="gradient of"):
        trainer.step(x.numpy(), y.numpy(), lr=1.0)
    assert trainer.steps == 0
    for name, array in trainer.weights().items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(NonFiniteError, match="input 'x'"):
        trainer.step(np.full_like(x.numpy(), np.nan), y.numpy(), lr=1.0)


def test_a_scale_grows_after_steps_without_overflow() -> None:
    scale = LossScale()
    for _ in range(GROWTH):
        scale.count()
    assert scale.value == 2 * FIRST
    while scale.lower():
        pass
    assert scale.value == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bfloat16", "target": "host"}, "is for GPUs, and this target is a CPU"),
        ({"precision": "float16", "guard": "off"}, "guard='off' leaves out"),
        ({"precision": "half"}, "'float32', 'bfloat16' or 'float16'"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        compiled(network(), **options)
