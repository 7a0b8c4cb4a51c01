"""The self-check: a program that does not do what PyTorch does is refused, and one that does is not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tvm import relax

import pock_tvm as pock
from pock_tvm.compiler.self_check.agreement import difference
from pock_tvm.compiler.self_check.finite_differences import Directions
from pock_tvm.compiler.self_check.measured import Measured
from pock_tvm.compiler.self_check.torch_reference import TorchReference
from pock_tvm.compiler.targets import resolve_target, runs_here
from pock_tvm.device.errors import DeviceError
from pock_tvm.device.gpu.opencl import OpenClBackend
from pock_tvm.device.machine import machine_triple
from pock_tvm.frontend import Model, load_model
from relay_passes.ir import bindings_of, op_name, rewrite, update_function
from relay_passes.operators.record import record_of
from tests.pock_tvm.networks import Tokens, small, tokens
from tests.schedules.kernels import first_device


def altered(model: Model, name: str, change: Callable[[relax.Expr], relax.Expr]) -> Model:
    """A model as an importer at fault would read it: the value of that name is another one."""

    def visit(builder: relax.BlockBuilder, var: relax.Var, value: relax.Expr) -> relax.Expr:
        return change(builder.emit(value, var.name)) if var.name == name else value

    assert any(binding.var.name == name for binding in bindings_of(model.module["main"]))
    main = rewrite(model.module["main"], visit)
    return replace(model, module=update_function(model.module, "main", main))


def break_rule(monkeypatch, op: str, operand: int, factor: float) -> None:
    """A gradient rule whose result is off by a factor."""
    rules = record_of(op).gradients
    entry = rules[operand]
    broken = replace(entry, rule=lambda use: entry.rule(use) * relax.const(factor, "float32"))
    monkeypatch.setitem(rules, operand, broken)


def exported(model: nn.Module, *inputs: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), inputs)


# ---- right programs --------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "clipped, with decay and momentum": {
        "clip_norm": 0.1, "optimizer": pock.SGD(momentum=0.9, nesterov=True, weight_decay=0.1),
    },
    "three steps an update, Adam": {"accumulate": 3, "optimizer": pock.Adam(weight_decay=0.1)},
    "two micro-batches, AdamW, in part": {
        "micro_batches": 2, "optimizer": pock.AdamW(),
        "scheme": pock.Scheme({"*": "full", "blocks.1.conv2.weight": 0.5, "stem.*": "frozen"}),
    },
    "batch statistics": {"batch_norm": "batch"},
    "batch statistics, three steps an update": {"batch_norm": "batch", "accumulate": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_a_right_program_passes_and_says_so(name: str, caplog) -> None:
    with caplog.at_level(logging.INFO, "pock_tvm"):
        program = pock.compile(small(4), **OPTIONS[name])
    found = program.manifest["check"]
    assert found["against"] == f"pytorch {torch.__version__.split('+')[0]}"
    assert found["batch"] == "synthetic"
    assert 0 < found["worst"]["difference"] < 1e-5
    assert set(found["unchecked"]) <= {"blocks.0.conv1.bias", "blocks.1.conv1.bias"}, "in front of a batch norm"
    assert "checked against pytorch" in caplog.text


def test_a_program_keeps_how_it_was_checked(tmp_path) -> None:
    program = pock.compile(tokens(), accumulate=2)
    program.save(tmp_path / "net.pock")
    assert pock.Program.load(tmp_path / "net.pock").manifest["check"] == program.manifest["check"]
    assert pock.compile(tokens(), check=False).manifest["check"] is None
    assert pock.compile(tokens(), build=False).manifest["check"] is None


@pytest.mark.skipif(machine_triple() != "x86_64-linux", reason="needs an x86-64 CPU")
def test_of_a_program_for_another_machine_the_hosts_build_is_checked() -> None:
    machines = [{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": cpu} for cpu in ("sapphirerapids", "znver4")]
    other = next(machine for machine in machines if not runs_here(resolve_target(machine)))
    program = pock.compile(tokens(), target=other)
    assert program.manifest["check"]["build"] == "of the host"
    assert program.manifest["check"]["worst"]["difference"] > 0


def test_a_program_that_runs_here_is_checked_itself_whatever_its_target_is_called() -> None:
    target = {"kind": "llvm", "num-cores": 1}
    assert runs_here(resolve_target(target))
    assert "build" not in pock.compile(tokens(), target=target).manifest["check"]
    assert not runs_here(resolve_target("raspberry-pi/4b-aarch64"))


def test_a_program_for_a_gpu_is_checked_on_the_gpu_if_there_is_one(monkeypatch) -> None:
    first_device("opencl")
    assert "build" not in pock.compile(tokens(), target="opencl").manifest["check"]
    monkeypatch.setattr(OpenClBackend, "__init__", _no_device)
    assert pock.compile(tokens(), target="opencl").manifest["check"]["build"] == "of the host"


def _no_device(*_args: object) -> None:
    raise DeviceError("there is no such device")


def test_a_users_batch_is_checked_as_a_step_would() -> None:
    x, y = np.full((4, 6), 39), np.array([0, 1, 2, -100])
    assert pock.compile(tokens(), check_with=(x, y)).manifest["check"]["batch"] == "given"
    with pytest.raises(pock.PockError, match="40 rows"):
        pock.compile(tokens(), check_with=(x + 1, y))
    with pytest.raises(pock.PockError, match="leave one of them out"):
        pock.compile(tokens(), check=False, check_with=(x, y))


class Gate(nn.Module):
    """Scaled by a parameter that is zero at first, as the last of a residual block often is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.gate, self.unused = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.ones(3))
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.gate * torch.tanh(self.inner(x)) + 0 * self.unused.sum())


def test_gradients_that_are_zero_at_first_are_checked_elsewhere(monkeypatch) -> None:
    network = exported(Gate(), torch.randn(4, 6))
    assert pock.compile(network).manifest["check"]["unchecked"] == {"unused": "its gradient is zero for a random batch"}
    break_rule(monkeypatch, "relax.tanh", 0, 1.01)
    with pytest.raises(pock.CheckError, match=r"the gradient of 'inner.bias' is \S+ at \[\d\] instead of \S+"):
        pock.compile(network)


# ---- wrong programs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "value"), [("stem", "conv2d"), ("blocks.0.conv2", "conv2d_2"), ("head", "linear")])
def test_the_first_layer_that_differs_is_named(layer: str, value: str) -> None:
    model = load_model(small(4))
    model = altered(model, model.values[value], lambda x: x * relax.const(1.001, "float32"))
    pock.compile(model, check=False)
    with pytest.raises(pock.CheckError, match=rf"first layer that differs is {layer}: .* instead of"):
        pock.compile(model)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"micro_batches": 2}, {"optimizer": pock.AdamW()}], ids=str)
@pytest.mark.parametrize("factor", [1.001, 0.0])
def test_the_gradient_that_differs_is_named(monkeypatch, factor: float, options: dict[str, Any]) -> None:
    break_rule(monkeypatch, "relax.tanh", 0, factor)
    with pytest.raises(pock.CheckError, match=r"the gradient of 'mix.bias' .* \(3 further gradients differ\)"):
        pock.compile(tokens(), **options)


class Detached(nn.Module):
    def __init__(self, stop: bool) -> None:
        super().__init__()
        self.stop, self.first, self.second = stop, nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(y.detach() if self.stop else y)


def test_a_gradient_that_pytorch_does_not_have_is_a_fault() -> None:
    model = load_model(exported(Detached(stop=False), torch.randn(2, 4)))
    model = replace(model, source=exported(Detached(stop=True), torch.randn(2, 4)))
    model.source.state_dict.update({name: torch.from_numpy(array) for name, array in model.weights.items()})
    with pytest.raises(pock.CheckError, match="the gradient of 'first.bias'"):
        pock.compile(model)


class Noisy(nn.Module):
    def __init__(self, noise: bool) -> None:
        super().__init__()
        self.noise, self.first, self.second = noise, nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(y + 0.01 * torch.rand_like(y) if self.noise else y)


def test_a_model_that_draws_random_numbers_is_refused_by_name() -> None:
    model = load_model(exported(Noisy(noise=False), torch.randn(2, 4)))
    with pytest.raises(pock.CheckError, match="draws random numbers in rand"):
        pock.compile(replace(model, source=exported(Noisy(noise=True), torch.randn(2, 4))))


def test_an_optimizer_that_is_not_pytorchs_is_refused(monkeypatch) -> None:
    usual = pock.Adam.kernel.fget
    monkeypatch.setattr(pock.Adam, "kernel", property(lambda self: usual(self) | {"beta2": 0.99}))
    with pytest.raises(pock.CheckError, match="the update of '.*' is not that of PyTorch's Adam"):
        pock.compile(tokens(), optimizer=pock.Adam())


def test_statistics_that_differ_are_named() -> None:
    network = small(4)
    model = load_model(network)

    def visit(builder: relax.BlockBuilder, _var: relax.Var, value: relax.Expr) -> relax.Expr:
        if op_name(value) != "relax.nn.batch_norm":
            return value
        return relax.op.nn.batch_norm(*value.args, axis=1, epsilon=1e-5, momentum=0.11)

    main = rewrite(model.module["main"], visit)
    model = replace(model, module=update_function(model.module, "main", main))
    with pytest.raises(pock.CheckError, match="the running statistic 'blocks.0.bn.running_mean' is"):
        pock.compile(model, batch_norm="batch")


# ---- ONNX ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    torch.onnx.export(Tokens().eval(), (torch.zeros(4, 6, dtype=torch.long),), path, dynamo=True, verbose=False)
    return path


@pytest.mark.parametrize(
    "options", [{}, {"optimizer": pock.Adam(weight_decay=0.1)}, {"accumulate": 2, "micro_batches": 2}], ids=str
)
def test_an_onnx_model_is_checked_against_the_reference_evaluator(onnx_file, options: dict[str, Any]) -> None:
    found = pock.compile(onnx_file, **options).manifest["check"]
    assert found["against"].startswith("onnx ")
    assert found["worst"]["difference"] < 1e-5
    assert found["unchecked"] == {}


@pytest.mark.parametrize("factor", [0.0, 0.9])
def test_a_wrong_gradient_of_an_onnx_model_is_named(onnx_file, monkeypatch, factor: float) -> None:
    break_rule(monkeypatch, "relax.tanh", 0, factor)
    with pytest.raises(pock.CheckError, match="the gradient of '(mix|words).*' is"):
        pock.compile(onnx_file)


@pytest.mark.parametrize(
    ("factor", "is_known", "is_right"), [(1.0, True, True), (1.0, False, False), (1.1, True, False)]
)
def test_a_kink_beside_the_weights_is_settled_in_double_precision(
    factor: float, is_known: bool, is_right: bool
) -> None:
    weights = {"w": np.array([1e-5, -1e-5], "float32"), "v": np.array([0.3], "float32")}

    def loss(at: Any) -> float:
        return 1.0 + float(np.abs(at["w"]).sum() + (at["v"] ** 2).sum())

    gradients = {"w": factor * np.array([1, -1], "float32"), "v": np.array([0.6], "float32")}
    directions = Directions(loss, dict.fromkeys(weights, "full"), lambda moved: loss(moved) if is_known else None)
    if is_right:
        assert directions.check(weights, gradients, tuple(weights)) == {}
        return
    with pytest.raises(pock.CheckError, match="the gradient of 'w' is wrong"):
        directions.check(weights, gradients, tuple(weights))


def test_a_wrong_forward_pass_of_an_onnx_model_is_refused(onnx_file) -> None:
    model = load_model(onnx_file)
    name = next(
        binding.var.name for binding in bindings_of(model.module["main"]) if op_name(binding.value) == "relax.tanh"
    )
    with pytest.raises(pock.CheckError, match=r"output 0 is \S+ at .* instead of"):
        pock.compile(altered(model, name, lambda x: x * relax.const(1.001, "float32")))


# ---- who is right ----------------------------------------------------------------------------------------------------


def test_a_gradient_that_the_reference_gets_wrong_is_settled_by_its_own_loss(monkeypatch) -> None:
    measure = TorchReference._measure

    def wrong(self, weights, batches, precise) -> Measured:
        measured = measure(self, weights, batches, precise)
        gradients = {name: g if g is None or name != "head.bias" else g[::-1] for name, g in measured.gradients.items()}
        return replace(measured, gradients=gradients)

    monkeypatch.setattr(TorchReference, "_measure", wrong)
    with pytest.warns(pock.PockWarning, match="own gradient of 'head.bias' is wrong"):
        program = pock.compile(small(4))
    assert program.manifest["check"]["disputed"] == ["head.bias"]


def test_a_transposed_gradient_of_an_evaluated_batch_norm() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x).flatten(2).transpose(1, 2) @ x.flatten(2)

    pock.compile(exported(Scores(), torch.zeros(1, 4, 4, 4)), scheme=pock.Scheme.full(), loss="mse")


# ---- the tolerance ---------------------------------------------------------------------------------------------------

NORMAL = np.random.default_rng(0).standard_normal(1000)
AGREEMENT: dict[str, tuple[np.ndarray, np.ndarray, bool]] = {
    "equal": (NORMAL, NORMAL, True),
    "rounding": (NORMAL.astype("float32"), NORMAL, True),
    "a factor": (NORMAL * 1.0001, NORMAL, False),
    "one element": (np.where(np.arange(1000) == 7, 0.01, NORMAL), NORMAL, False),
    "a zero that is not": (np.full(3, 1e-9), np.zeros(3), False),
    "NaN in both": (np.array([1, np.nan]), np.array([1, np.nan]), True),
    "NaN in one": (np.array([1, 2.0]), np.array([1, np.nan]), False),
    "infinities of other signs": (np.array([np.inf]), np.array([-np.inf]), False),
}


@pytest.mark.parametrize("name", AGREEMENT)
def test_agreement(name: str) -> None:
    ours, theirs, agree = AGREEMENT[name]
    assert (difference(ours, theirs, exact=lambda: theirs) is None) == agree


def test_what_pytorch_itself_cannot_know_is_not_asked_of_us() -> None:
    exact = NORMAL
    theirs, ours = (exact + 1e-3 * np.random.default_rng(seed).standard_normal(1000) for seed in (1, 2))
    assert difference(ours, theirs, exact=lambda: exact) is None
    assert difference(ours, exact, exact=lambda: exact) is not None


def test_numbers_that_are_not_finite_are_compared_without_a_guard() -> None:
    """The program that is returned has its guard: what it computes behind a NaN is checked by a build without."""
    x = torch.randn(4, 3, 8, 8)
    x[1, 2, 3, 4] = torch.nan
    program = pock.compile(small(4), batch_norm="frozen", check_with=(x.numpy(), np.arange(4)))
    assert program.manifest["check"]["batch"] == "given" and program.manifest["options"]["guard"] == "update"
    with pytest.raises(pock.NonFiniteError):
        pock.Trainer(program).step(x.numpy(), np.arange(4), lr=0.1)
