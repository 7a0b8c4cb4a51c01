"""Frozen layers in eight bits: what is computed, what is trained behind it, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.compiler.calibration_data import MOST_BATCHES, calibration_batches
from pock_tvm.compiler.self_check import integers
from pock_tvm.errors import CheckError, CheckpointError, DataError, InputError, OptionError
from pock_tvm.frontend.model import TensorSpec
from schedules.cpu.target import CpuLayouts

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((4, 3, 8, 8)).astype("float32"), np.array([1, 0, 7, 3])
HEAD = pock.Scheme({"head.*": "full"})


class Network(nn.Module):
    """A stem whose input has three channels, an inverted residual, a maximum, a convolution in groups, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.expand, self.spatial = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project, self.pool = nn.Conv2d(16, 8, 1), nn.MaxPool2d(2)
        self.groups, self.last = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.project(nn.functional.relu6(self.spatial(torch.relu(self.expand(x)))))
        return self.head(torch.tanh(self.groups(self.last(self.pool(x)))).mean((2, 3)))


def exported() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    model = Network().eval()
    model.norm.running_mean[:], model.norm.running_var[:] = torch.randn(8) / 4, torch.rand(8) + 0.5
    return torch.export.export(model, (torch.from_numpy(X),))


def compiled(model: Any, **options: Any) -> pock.Program:
    return pock.compile(
        model, batch_norm="frozen", **({"scheme": HEAD, "frozen": "int8", "calibrate_with": X} | options)
    )


@pytest.fixture(scope="module")
def model() -> torch.export.ExportedProgram:
    return exported()


@pytest.fixture(scope="module")
def program(model) -> pock.Program:
    return compiled(model)


@pytest.fixture(scope="module")
def floats(model) -> pock.Program:
    return compiled(model, frozen="float32", calibrate_with=None, check=False)


def test_planes_of_words_hold_the_same_numbers(model, program, monkeypatch) -> None:
    """As Hexagon stores them, here on the host, where layers over planes and over bytes follow each other."""
    monkeypatch.setattr(CpuLayouts, "word_planes", True)
    planes = compiled(model, check=False)
    names = " ".join(planes.manifest["kernels"])
    assert all(name in names for name in ("quantize_planes", "planes_layer", "planes_layer_sum", "bytes_of_planes"))
    ours, theirs = (pock.Trainer(each).predict(X) for each in (planes, program))
    np.testing.assert_array_equal(ours, theirs)


def test_layers_before_the_first_trained_parameter_compute_in_eight_bits(program) -> None:
    report = program.manifest["quantized"]
    kinds = {layer["name"]: (layer["kind"], layer["stored"]) for layer in report["layers"]}
    assert kinds == {
        "stem": ("conv2d", True), "expand": ("conv2d", True), "spatial": ("depthwise", True),
        "project": ("conv2d", True), "last": ("conv2d", False),
    }  # fmt: skip
    assert list(report["float"]) == ["groups"]
    assert "in groups" in report["float"]["groups"]
    assert report["check"]["against"] == "numpy's integers"
    assert report["check"]["values"] >= 6
    assert report["check"]["error"] < 0.05
    assert program.manifest["check"]["build"] == "in float32"
    names = " ".join(program.manifest["kernels"])
    assert "quantized_conv2d" in names
    assert "requantize_sum" in names
    flops = [cost["flops"] for cost in program.manifest["kernels"].values() if cost["kind"] == "int8 pock.conv2d"]
    assert next(row["forward_flops"] for row in program.manifest["layers"] if row["name"] == "expand") in flops


def test_float_weights_of_these_layers_are_not_in_the_program(program, floats, model) -> None:
    gone = {name for name in model.state_dict if name.partition(".")[0] not in ("groups", "head")}
    assert set(program.in_eight_bits) == gone - {"norm.num_batches_tracked", "last.bias"}
    assert program.weights.keys() == floats.weights.keys() - set(program.in_eight_bits)
    assert program.memory()["arena"] < floats.memory()["arena"]
    trainer = pock.Trainer(program)
    state = dict(model.state_dict)
    trainer.load_state_dict(state)  # the weights that it was compiled from
    assert trainer.state_dict().keys() == program.weights.keys()
    with pytest.raises(CheckpointError, match=r"'stem\.weight' differs .* in eight bits"):
        trainer.load_state_dict(state | {"stem.weight": state["stem.weight"] + 1})


def test_what_is_trained_learns_as_in_pytorch_from_the_prefix_as_it_is(program, floats) -> None:
    trainer = pock.Trainer(program)
    weights = trainer.weights()
    as_is = {"head.weight": np.eye(8, dtype="float32"), "head.bias": np.zeros(8, "float32")}
    trainer.load_state_dict(weights | as_is)
    features = trainer.predict(X)
    in_float = pock.Trainer(floats)
    in_float.load_state_dict(in_float.weights() | as_is)
    expected = in_float.predict(X)
    assert 0 < np.linalg.norm(features - expected) < 0.1 * np.linalg.norm(expected)

    trainer.load_state_dict(weights)
    weight, bias = (torch.tensor(weights[f"head.{name}"], requires_grad=True) for name in ("weight", "bias"))
    logits = nn.functional.linear(torch.from_numpy(features), weight, bias)
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(Y))
    loss.backward()
    assert trainer.step(X, Y, lr=0.5) == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in (("weight", weight), ("bias", bias)):
        updated = (parameter - 0.5 * parameter.grad).detach().numpy()
        np.testing.assert_allclose(trainer.weights()[f"head.{name}"], updated, rtol=1e-4, atol=1e-6)


def test_a_program_in_eight_bits_is_saved_and_resumes(program, tmp_path) -> None:
    program.save(tmp_path / "net.pock")
    trainer = pock.Trainer(pock.Program.load(tmp_path / "net.pock"))
    trainer.step(X, Y, lr=0.1)
    trainer.save(tmp_path / "net.ckpt")
    again = pock.Trainer(program)
    again.restore(tmp_path / "net.ckpt")
    assert again.step(X, Y, lr=0.1) == trainer.step(X, Y, lr=0.1)


def test_sensitive_layers_stay_float_until_outputs_are_near(model, floats) -> None:
    whole = compiled(model, max_drop=10, check=False)
    drop = whole.manifest["quantized"]["drop"]
    ours, expected = (pock.Trainer(each).predict(X) for each in (whole, floats))
    assert drop == pytest.approx(np.linalg.norm(ours - expected) / np.linalg.norm(expected), rel=1e-3)
    assert "max_drop" not in str(whole.manifest["quantized"]["float"])
    limited = compiled(model, max_drop=drop / 2, check=False)
    report = limited.manifest["quantized"]
    left = [name for name, why in report["float"].items() if "alone it changes its product by" in why]
    assert left
    assert len(report["layers"]) == len(whole.manifest["quantized"]["layers"]) - len(left) > 0
    assert np.linalg.norm(pock.Trainer(limited).predict(X) - expected) <= drop / 2 * np.linalg.norm(expected)


def test_micro_batches_compute_the_same_integers(program, model) -> None:
    parts = compiled(model, micro_batches=2, check=False)
    np.testing.assert_allclose(pock.Trainer(parts).predict(X), pock.Trainer(program).predict(X), rtol=1e-5, atol=1e-6)


def test_the_self_check_finds_a_wrong_integer(model, monkeypatch) -> None:
    right = integers.OPERATORS["pock.requantize"]
    monkeypatch.setitem(integers.OPERATORS, "pock.requantize", lambda *given: right(*given) + (np.uint8(1)))
    with pytest.raises(CheckError, match=r"computes operator 'relu' .* differs from NumPy's integers"):
        compiled(model)


def test_linear_layers_compute_in_eight_bits() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(4, 5, 3)
    program = pock.compile(
        torch.export.export(layers, (x,)), scheme=pock.Scheme({"4.*": "full"}), loss="mse", frozen="int8",
        calibrate_with={"input": x},
    )  # fmt: skip
    report = program.manifest["quantized"]
    assert [(layer["name"], layer["kind"]) for layer in report["layers"]] == [("0", "matmul"), ("2", "matmul")]
    assert report["check"]["error"] < 0.05


class Means(nn.Module):
    """Means over images: of a layer, of one whose result others read in float, and of a block's sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow, self.wide = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 20, 1), nn.Conv2d(12, 12, 1)
        self.pool, self.squeeze, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(20, 8), nn.AvgPool2d((7, 5))
        self.head = nn.Linear(20, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        squeezed = torch.relu(self.squeeze(torch.relu(self.narrow(x)).mean((2, 3))))
        block = torch.relu(x + self.wide(x))
        gated = torch.relu(self.wide(block))
        gate = torch.tanh(self.pool(gated) * gated).mean((2, 3))
        return self.head(torch.cat([squeezed, self.last(block).flatten(1) + gate], 1))


def test_means_of_what_layers_compute_are_sums_of_integers(monkeypatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 7)
    model = torch.export.export(Means().eval(), (x,))
    program = compiled(model, calibrate_with=x)
    layers = {layer["name"]: (layer["kind"], layer["stored"]) for layer in program.manifest["quantized"]["layers"]}
    assert {name: each for name, each in layers.items() if each[0] == "mean"} == {
        "mean": ("mean", True), "last": ("mean", False),
    }  # fmt: skip
    assert program.manifest["quantized"]["check"]["error"] < 0.05
    monkeypatch.setattr(CpuLayouts, "word_planes", True)
    planes = pock.Trainer(compiled(model, calibrate_with=x, check=False)).predict(x.numpy())
    np.testing.assert_array_equal(planes, pock.Trainer(program).predict(x.numpy()))


def test_a_mean_alone_rounds_no_residuals() -> None:
    """Else those of all blocks of a transformer would be rounded."""

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.first(torch.tanh(x))
            return self.head((x + self.second(torch.tanh(x))).mean(1))

    torch.manual_seed(0)
    x = torch.randn(4, 5, 8)
    report = compiled(torch.export.export(Blocks().eval(), (x,)), calibrate_with=x).manifest["quantized"]
    assert [(layer["name"], layer["stored"]) for layer in report["layers"]] == [("first", False), ("second", False)]


def test_layers_behind_dropout_stay_float() -> None:
    """Calibration sees no dropped values, which are larger."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(4, 8)
    report = pock.compile(
        torch.export.export(layers.eval(), (x,)), scheme=pock.Scheme({"4.*": "full"}), frozen="int8",
        calibrate_with=x.numpy(), dropout=True,
    ).manifest["quantized"]  # fmt: skip
    assert [layer["name"] for layer in report["layers"]] == ["0"]
    assert report["float"] == {"2": "it reads what a step draws numbers for, such as dropout; calibration lacks them"}


def test_layers_without_a_range_and_with_too_large_sums_stay_float() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(70_000, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    layers[0].weight.data.fill_(1.0)
    layers[1].bias.data.fill_(-1e6)
    x = torch.rand(2, 70_000)
    report = pock.compile(
        torch.export.export(layers, (x,)), scheme=pock.Scheme({"4.*": "full"}), loss="mse", frozen="int8",
        calibrate_with=x.numpy(), build=False,
    ).manifest["quantized"]  # fmt: skip
    assert [layer["name"] for layer in report["layers"]] == ["1"]
    assert report["float"] == {
        "0": "a sum could overflow 32 bits", "3": "what it reads is zero on all calibration data",
    }  # fmt: skip


REFUSED = {
    "no data": ({"calibrate_with": None}, OptionError, "needs data"),
    "data without int8": ({"frozen": "float32"}, OptionError, "calibrate_with is data for"),
    "another type": ({"frozen": "int4"}, OptionError, "'float32' or 'int8'"),
    "statistics of the batch": ({"batch_norm": "batch"}, OptionError, "frozen statistics"),
    "no samples": ({"calibrate_with": []}, DataError, "holds no samples"),
    "an empty array": ({"calibrate_with": X[:0]}, DataError, "holds no samples"),
    "not finite": ({"calibrate_with": X * np.float32("nan")}, DataError, "input 'x' .* is not finite"),
    "another shape": ({"calibrate_with": X[:, :, 1:]}, InputError, "has the shape"),
    "another input": ({"calibrate_with": {"y": X}}, InputError, "'y' of the calibration data is not one"),
    "a number": ({"calibrate_with": [3]}, InputError, "input 'x' of the calibration data has the shape"),
    "one number": ({"calibrate_with": 0 * X}, DataError, "is 0.0 everywhere"),
    "a limit without int8": (
        {"frozen": "float32", "calibrate_with": None, "max_drop": 0.1},
        OptionError,
        "max_drop= is for",
    ),
    "a limit of zero": ({"max_drop": 0}, OptionError, "max_drop is a positive number"),
    "a limit that nothing holds": ({"max_drop": 1e-9}, OptionError, "leaves no layer to compute in eight bits"),
    "no data at all": ({"calibrate_with": 3}, InputError, "is an array of samples"),
    "a GPU": ({"target": "opencl"}, OptionError, "is for CPUs"),
    "nothing frozen before": ({"scheme": pock.Scheme.full()}, OptionError, "finds no layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name, model) -> None:
    options, error, match = REFUSED[name]
    with pytest.raises(error, match=match):
        pock.compile(
            model, **({"scheme": HEAD, "frozen": "int8", "calibrate_with": X, "batch_norm": "frozen"} | options)
        )


def test_calibration_data_is_cut_in_batches_of_the_program() -> None:
    specs = [TensorSpec("x", (4, 3, 8, 8), "float32")]
    given = np.concatenate([X, X[:1] + 1])
    first, second = calibration_batches([(given, np.zeros(5))], specs)
    np.testing.assert_array_equal(first["x"], X)
    np.testing.assert_array_equal(second["x"], np.repeat(X[:1] + 1, 4, 0))
    assert len(calibration_batches(iter([{"x": X}] * 100), specs)) == MOST_BATCHES
