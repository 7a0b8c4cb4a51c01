"""Models that are quantised already: they train in float, and keep their scales where frozen layers have eight bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

import pock_tvm as pock
from pock_tvm.errors import ModelError, OptionError, PockWarning
from pock_tvm.frontend import load_model

Q = torch.ops.quantized_decomposed
RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 3, 8, 8)).astype("float32")
HEAD = pock.Scheme({"head.*": "full"})
SCALES = {"x": (0.031, 5), "first": (0.017, -128), "pool": (0.018, -128), "second": (0.023, -128)}
"""Of values, with zero points of int8."""


def weights() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the integers, scales and biases of two convolutions."""
    rng = np.random.default_rng(1)
    return {
        name: (
            rng.integers(-127, 128, shape).astype("int8"),
            rng.uniform(0.5, 2, shape[0]).astype("float32") * np.float32(0.006 / np.sqrt(np.prod(shape[1:]))),
            rng.standard_normal(shape[0]).astype("float32") / 4,
        )
        for name, shape in (("first", (8, 3, 3, 3)), ("second", (8, 8, 1, 1)))
    }


class Layer(nn.Module):
    """Convolution with integer weights, as PT2E writes it."""

    def __init__(self, q: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("integers", torch.from_numpy(q))
        self.register_buffer("scales", torch.from_numpy(scale))
        self.register_buffer("zeros", torch.zeros(len(scale), dtype=torch.int64))
        self.bias = nn.Parameter(torch.from_numpy(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = Q.dequantize_per_channel(self.integers, self.scales, self.zeros, 0, -127, 127, torch.int8)
        return torch.relu(nn.functional.conv2d(x, weight, self.bias, padding=(weight.shape[-1] - 1) // 2))


def rounded(x: torch.Tensor, name: str) -> torch.Tensor:
    given = (*SCALES[name], -128, 127, torch.int8)
    return Q.dequantize_per_tensor(Q.quantize_per_tensor(x, *given), *given)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (Layer(*arrays) for arrays in weights().values())
        torch.manual_seed(0)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = rounded(self.first(rounded(x, "x")), "first")
        x = rounded(nn.functional.max_pool2d(x, 2), "pool")
        return self.head(rounded(self.second(x), "second").mean((2, 3)))


def in_torch() -> tuple[Any, np.ndarray]:
    model = Network().eval()
    exported = torch.export.export(model, (torch.from_numpy(X),))
    return exported, model(torch.from_numpy(X)).detach().numpy()


def in_onnx() -> tuple[Any, np.ndarray]:
    """Return the same network with QuantizeLinear and DequantizeLinear."""
    nodes, tensors = [], []

    def constant(name: str, array: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(array, name))
        return name

    def pair(x: str, name: str) -> str:
        scale, zero = SCALES[name]
        given = [constant(f"{name}_scale", np.float32(scale)), constant(f"{name}_zero", np.int8(zero))]
        nodes.append(helper.make_node("QuantizeLinear", [x, *given], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *given], [f"{name}_dq"]))
        return f"{name}_dq"

    x = pair("x", "x")
    for name, (q, scale, bias) in weights().items():
        given = [constant(f"{name}.scale", scale), constant(f"{name}.zero", np.zeros(len(scale), "int8"))]
        if name == "first":
            integers = constant("first.weight_quantized", q)
        else:  # a weight in float, as some quantisers leave it
            integers, weight = (
                "second.q",
                constant("second.weight", (q + 0.2).astype("float32") * scale[:, None, None, None]),
            )
            nodes.append(helper.make_node("QuantizeLinear", [weight, *given], [integers], axis=0))
        nodes.append(helper.make_node("DequantizeLinear", [integers, *given], [f"{name}.dq"], axis=0))
        operands, pad = [x, f"{name}.dq", constant(f"{name}.bias", bias)], (q.shape[-1] - 1) // 2
        nodes.append(helper.make_node("Conv", operands, [f"{name}.conv"], pads=[pad] * 4))
        nodes.append(helper.make_node("Relu", [f"{name}.conv"], [f"{name}.relu"]))
        x = pair(f"{name}.relu", name)
        if name == "first":
            nodes.append(helper.make_node("MaxPool", [x], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]))
            x = pair("pooled", "pool")
    head = Network().head
    operands = [constant(f"head.{name}", each.detach().numpy()) for name, each in head.named_parameters()]
    nodes.append(helper.make_node("ReduceMean", [x, constant("axes", np.array([2, 3]))], ["mean"], keepdims=0))
    nodes.append(helper.make_node("Gemm", ["mean", *operands], ["y"], transB=1))
    kinds = [helper.make_tensor_value_info(*each) for each in (("x", 1, X.shape), ("y", 1, (4, 5)))]
    graph = helper.make_graph(nodes, "net", kinds[:1], kinds[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model, full_check=True)
    return model, ReferenceEvaluator(model).run(None, {"x": X})[0]


@pytest.mark.parametrize("made", [in_torch, in_onnx])
def test_a_quantised_model_keeps_its_scales_and_needs_no_data(made) -> None:
    model, expected = made()
    imported = load_model(model)
    for name, (q, scale, _) in weights().items():
        weight = scale[:, None, None, None] * q
        np.testing.assert_allclose(imported.weights[f"{name}.weight"], weight, rtol=1e-6)
        np.testing.assert_allclose(imported.stated.weights[f"{name}.weight"], scale)
    stated = sorted((each.scale, each.zero) for each in imported.stated.values.values())
    np.testing.assert_allclose(stated, sorted((scale, zero + 128) for scale, zero in SCALES.values()), rtol=1e-6)
    program = pock.compile(imported, scheme=HEAD, frozen="int8")
    report = program.manifest["quantized"]
    assert [layer["name"] for layer in report["layers"]] == ["first", "second", "mean"]
    assert report["float"] == {}
    found = pock.Trainer(program).predict(X)
    assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize("made", [in_torch, in_onnx])
def test_without_eight_bits_it_trains_in_float(made) -> None:
    with pytest.warns(PockWarning, match="the model is quantised, and the program computes in float"):
        pock.compile(made()[0], scheme=HEAD, build=False)
    with pytest.warns(PockWarning, match=r"'second\.weight' is trained in float"):
        program = pock.compile(
            made()[0], scheme=pock.Scheme({"head.*": "full", "second.*": "full"}), frozen="int8", check=False
        )
    assert [layer["name"] for layer in program.manifest["quantized"]["layers"]] == ["first"]
    assert np.isfinite(pock.Trainer(program).step(X, np.zeros(4, int), lr=0.1))


def test_a_limit_of_the_drop_needs_data() -> None:
    with pytest.raises(OptionError, match="max_drop= is measured on samples"):
        pock.compile(in_torch()[0], scheme=HEAD, frozen="int8", max_drop=0.1)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("integers", torch.zeros(4, 8, dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scales, zeros = torch.ones(4, 2), torch.zeros(4, 2)
        given = (-8, 7, torch.int8, 4, torch.float32)
        return x @ Q.dequantize_per_channel_group(self.integers, scales, zeros, *given).T


class FourBits(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = (0.1, 0, -8, 7, torch.int8)
        return Q.dequantize_per_tensor(Q.quantize_per_tensor(x, *given), *given)


class Dynamic(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, zero = Q.choose_qparams.tensor(x, -128, 127, 1e-6, torch.int8)
        given = (scale, zero, -128, 127, torch.int8)
        return Q.dequantize_per_tensor.tensor(Q.quantize_per_tensor.tensor(x, *given), *given)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Grouped(), r"dequantize_per_channel_group.* is not one scale a tensor or a channel"),
        (FourBits(), r"integers from -8 to 7"),
        (Dynamic(), r"choose_qparams.* is not one scale"),
    ],
)
def test_other_quantisation_is_refused_by_name(module, message) -> None:
    exported = torch.export.export(module, (torch.ones(2, 8),))
    with pytest.raises(ModelError, match=message):
        load_model(exported)


def test_blocks_and_other_types_of_onnx_are_refused_by_name() -> None:
    model, _ = in_onnx()
    node = next(node for node in model.graph.node if node.output[0] == "first.dq")
    node.attribute.append(helper.make_attribute("block_size", 2))
    with pytest.raises(ModelError, match=r"DequantizeLinear.*first\.dq.* has a scale for each block"):
        load_model(model)
