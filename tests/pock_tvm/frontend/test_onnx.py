"""The ONNX front end: numbers of single nodes, whole networks against PyTorch, names of parameters, refusals."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import tvm
from torch import nn
from tvm import IRModule, relax

import pock_tvm as pock
from pock_tvm.errors import ModelError
from pock_tvm.frontend import load_model
from pock_tvm.frontend.model import Model, TensorSpec, records_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from pock_tvm.frontend.onnx_file import import_onnx, reference_outputs  # noqa: E402

RNG = np.random.default_rng(0)


def node_model(
    operator: str,
    shapes: Sequence[Sequence[int]],
    constants: Sequence[np.ndarray | None] = (),
    *,
    opset: int = 18,
    outputs: int = 1,
    **attributes: Any,
) -> Any:
    """A model of one node: inputs of these shapes, then constants (None is left out)."""
    inputs = [
        helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, shape) for index, shape in enumerate(shapes)
    ]
    held = {f"c{index}": array for index, array in enumerate(constants) if array is not None}
    names = [value.name for value in inputs] + [
        "" if array is None else f"c{index}" for index, array in enumerate(constants)
    ]
    node = helper.make_node(operator, names, [f"y{index}" for index in range(outputs)], name="the_node", **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        inputs,
        [helper.make_empty_tensor_value_info(f"y{index}") for index in range(outputs)],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def imported(model: Any, batch: int | None = None) -> Model:
    return import_onnx(model, batch=batch, shapes={}, any_shape=False)


def outputs_of(model: Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    compiled = tvm.compile(relax.transform.LegalizeOps()(model.module), target="llvm")
    values = [feeds.get(param.name, model.weights.get(param.name)) for param in model.module["main"].params]
    results = relax.VirtualMachine(compiled, tvm.cpu())["main"](*[tvm.runtime.tensor(np.array(v)) for v in values])
    results = [results] if isinstance(results, tvm.runtime.Tensor) else list(results)
    return [result.numpy() for result in results]


def ints(*values: int) -> np.ndarray:
    return np.array(values, "int64")


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype("float32")


IMAGE = [(2, 3, 7, 6)]
VOLUME = (2, 3, 5, 4, 3)
NODES = {
    "average of a ceiled window": node_model(
        "AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1
    ),
    "average with padding, uneven": node_model(
        "AveragePool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1
    ),
    "maximum of a ceiled window": node_model("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "maximum along one axis": node_model("MaxPool", [(2, 3, 9)], kernel_shape=[3], strides=[2], pads=[1, 0]),
    "where the maxima are": node_model(
        "MaxPool", IMAGE, outputs=2, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1], dilations=[1, 2]
    ),
    "where the maxima of single positions are": node_model("MaxPool", IMAGE, outputs=2, kernel_shape=[1, 1]),
    "where the maxima of rows are": node_model(
        "MaxPool", [(2, 3, 9)], outputs=2, kernel_shape=[3], strides=[2], pads=[1, 0]
    ),
    "padding as SAME_LOWER": node_model(
        "Conv", IMAGE, [RNG.standard_normal((4, 3, 2, 2)).astype("float32")], auto_pad="SAME_LOWER", strides=[2, 1]
    ),
    "transposed convolution, uneven": node_model(
        "ConvTranspose",
        IMAGE,
        [RNG.standard_normal((3, 4, 3, 3)).astype("float32")],
        strides=[2, 2],
        pads=[1, 0, 0, 1],
        output_padding=[1, 0],
    ),  # fmt: skip
    "convolution of volumes, uneven": node_model(
        "Conv", [VOLUME], [weights(4, 3, 2, 3, 1)], strides=[2, 1, 2], pads=[1, 0, 0, 0, 2, 0], dilations=[2, 1, 1]
    ),
    "transposed convolution of volumes, uneven": node_model(
        "ConvTranspose",
        [VOLUME],
        [weights(3, 4, 3, 2, 1)],
        strides=[2, 1, 3],
        pads=[1, 0, 0, 2, 1, 0],
        output_padding=[1, 0, 2],
    ),
    "windows folded": node_model(
        "Col2Im", [(2, 12, 9)], [ints(7, 6), ints(2, 3)], strides=[2, 2], dilations=[2, 1], pads=[1, 0, 0, 1]
    ),
    "slice backwards": node_model("Slice", [(5, 6)], [ints(4, -1), ints(-6, -7), ints(0, 1), ints(-2, -1)]),
    "layer norm's statistics": node_model(
        "LayerNormalization", [(2, 3, 4)], [np.ones((3, 4), "float32")], outputs=3, axis=1
    ),
    "bilinear, corners aligned": node_model(
        "Resize",
        IMAGE,
        [None, None, ints(2, 3, 10, 9)],
        mode="linear",
        coordinate_transformation_mode="align_corners",
    ),  # fmt: skip
    "mirrored border": node_model("Pad", [(3, 4)], [ints(1, 2, 0, 3)], mode="reflect"),
    "exclusive sum from the end": node_model("CumSum", [(3, 4)], [np.array(1)], exclusive=1, reverse=1),
    "sum of products": node_model("Einsum", [(2, 3, 4), (5, 4, 2)], equation="bij,kjb->bki"),
    "sum of products over an ellipsis, with a diagonal": node_model(
        "Einsum", [(2, 1, 4, 4), (1, 3, 5, 4)], equation="...ii,...ki->...k"
    ),
    "the last of equals": node_model("ArgMax", [(3, 4)], select_last_index=1),
    "transposed convolution to twice the size": node_model(
        "ConvTranspose", IMAGE, [weights(3, 4, 3, 3)], strides=[2, 2], auto_pad="SAME_UPPER"
    ),
    "a row added twice": node_model(
        "ScatterND", [(4, 3)], [np.array([[1], [-1], [1]]), weights(3, 3)], reduction="add"
    ),
    "elements gathered in each batch": node_model(
        "GatherND", [(2, 3, 4)], [np.array([[[2], [0]], [[-1], [1]]])], batch_dims=1
    ),
    "remainder with the dividend's sign": node_model("Mod", [(3, 4), (4,)], fmod=1),
    "sampled at a grid": node_model(
        "GridSample", [(1, 2, 5, 6), (1, 3, 4, 2)], opset=20, mode="cubic", padding_mode="reflection"
    ),
    "frequencies": node_model("DFT", [(2, 7, 1)], [None, np.array(1)], opset=20, onesided=1),
    "samples of half the frequencies": node_model(
        "DFT", [(2, 4, 2)], [np.array(7), np.array(1)], opset=20, onesided=1, inverse=1
    ),
    "frequencies of frames": node_model(
        "STFT", [(2, 12, 1)], [np.array(3), np.hanning(6).astype("float32")], onesided=1
    ),
    "long short-term memory, both ways": node_model(
        "LSTM",
        [(3, 2, 4)],
        [weights(2, 12, 4), weights(2, 12, 3), weights(2, 24), None, weights(2, 2, 3)],
        outputs=3,
        direction="bidirectional",
        hidden_size=3,
    ),
    "gated units from the end": node_model(
        "GRU", [(3, 2, 4)], [weights(1, 9, 4), weights(1, 9, 3)], outputs=2, direction="reverse", hidden_size=3
    ),
    "gated units as in PyTorch, batch first": node_model(
        "GRU",
        [(2, 3, 4)],
        [weights(1, 9, 4), weights(1, 9, 3), weights(1, 18)],
        hidden_size=3,
        layout=1,
        linear_before_reset=1,
    ),
    "recurrent relu": node_model(
        "RNN", [(3, 2, 4)], [weights(1, 3, 4), weights(1, 3, 3)], hidden_size=3, activations=["Relu"]
    ),
    "an exponential that would overflow": node_model("Elu", [(3, 4)], alpha=2.0),
    "a function of other operators": node_model("MeanVarianceNormalization", [(2, 3, 4, 4)]),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_computes_what_onnx_defines(name: str) -> None:
    model = NODES[name]
    feeds = {
        value.name: RNG.standard_normal([dim.dim_value for dim in value.type.tensor_type.shape.dim]).astype("float32")
        * (100 if "overflow" in name else 1)
        for value in model.graph.input
    }
    ours, wanted = outputs_of(imported(model), feeds), reference_outputs(model, feeds)
    assert len(ours) == len(wanted)
    for a, b in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


LOOP = """
    <ir_version: 8, opset_import: ["": 17]>
    summed (float[2, 3] x) => (float[2, 3] last, float[4, 2, 3] all) {
        turns = Constant <value = int64 {4}> ()
        go_on = Constant <value = bool {1}> ()
        last, all = Loop (turns, go_on, x) <body = body (int64 turn, bool go, float[2, 3] state)
            => (bool still, float[2, 3] next, float[2, 3] row) {
                still = Identity (go)
                share = Cast <to = 1> (turn)
                next = Mul (state, x)
                row = Add (next, share)
            }>
    }
"""


def test_a_loop_of_known_length_is_written_out() -> None:
    model, x = onnx.parser.parse_model(LOOP), weights(2, 3)
    last, rows = outputs_of(imported(model), {"x": x})
    np.testing.assert_allclose(last, x**5, rtol=1e-5)
    np.testing.assert_allclose(rows, [x ** (turn + 2) + turn for turn in range(4)], rtol=1e-5, atol=1e-6)


def test_the_shape_that_the_file_declares_stands_for_one_that_is_computed() -> None:
    model = node_model("Reshape", [(2, 3)], opset=18)
    model.graph.node[0].input.append("shape")
    model.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
    with pytest.raises(ModelError, match="'shape' is computed"):
        imported(model)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y0", TensorProto.FLOAT, [3, 2]))
    x = weights(2, 3)
    ours = outputs_of(imported(model), {"x0": x, "shape": ints(3, 2)})[0]
    np.testing.assert_array_equal(ours, x.reshape(3, 2))


def test_before_operator_set_13_softmax_runs_over_all_that_follows() -> None:
    x = RNG.standard_normal((2, 3, 4)).astype("float32")
    ours = outputs_of(imported(node_model("Softmax", [x.shape], opset=11, axis=1)), {"x0": x})[0]
    np.testing.assert_allclose(ours, np.exp(x) / np.exp(x).sum((1, 2), keepdims=True), rtol=1e-5)


REFUSED = [
    (node_model("MaxRoiPool", [(1, 2, 8, 8), (1, 5)], pooled_shape=[2, 2]), r"MaxRoiPool \(node 'the_node'.*supported"),
    (node_model("MaxPool", IMAGE, kernel_shape=[2, 2], storage_order=1), r"MaxPool .*attribute 'storage_order'"),
    (node_model("MaxPool", [VOLUME], kernel_shape=[2, 2, 2], outputs=2), r"MaxPool .*places of maxima along 3 axes"),
    (node_model("LSTM", [(3, 2, 4), (1, 12, 4), (1, 12, 3)], hidden_size=3, clip=0.5), "'clip'"),
    (node_model("Reshape", [(2, 3), (2,)]), "Reshape"),
    (node_model("ReduceSum", [(2, 3)], outputs=1, keepdims=1, noop_with_empty_axes=0, opset=11), "ReduceSum"),
    (node_model("Dropout", [(2, 3)], [np.float32(1.0), np.bool_(True)]), r"Dropout .*'ratio' is 1, not in"),
    (node_model("RandomNormalLike", [(2, 3)]), "RandomNormalLike.*random"),
    (node_model("NonZero", [(2, 3)]), "NonZero .*not supported"),
    (node_model("Tanh", [(2, 3)], alpha=1.0), "Tanh"),
    (node_model("DFT", [(1, 9000, 1)], [None, np.array(1)], opset=20), "DFT .*transforms 9000 numbers, by a matrix of"),
]


@pytest.mark.parametrize(("model", "complaint"), REFUSED, ids=[model.graph.node[0].op_type for model, _ in REFUSED])
def test_what_a_converter_does_not_know_is_refused_by_name(model: Any, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        imported(model)


def test_files_that_make_no_sense_are_refused_by_name() -> None:
    lost = node_model("Add", [(2, 3)])
    lost.graph.node[0].input.append("lost")
    text = node_model("Identity", [(2, 3)])
    text.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    without = node_model("Tanh", [(2, 3)])
    without.graph.output[0].name = "y1"
    for model, complaint in (
        (lost, "Add .*nothing in the file makes 'lost', which it reads"),
        (text, "input 'x0' is of type string"),
        (without, "nothing in the file makes the output 'y1'"),
    ):
        with pytest.raises(ModelError, match=complaint):
            imported(model)


def exported(model: nn.Module, example: torch.Tensor, *, dynamo: bool, opset: int = 18) -> Any:
    """The model by one of PyTorch's exporters, with a dynamic batch."""
    dynamic: dict[str, Any] = {"dynamic_axes": {"x": {0: "batch"}}}
    if dynamo:
        dynamic = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    file = io.BytesIO()
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            model, (example,), file, input_names=["x"], opset_version=opset, dynamo=dynamo, verbose=False, **dynamic
        )
    return onnx.load_from_string(file.getvalue())


class Tokens(nn.Module):
    """A class token that is expanded to the batch, norms that begin equal, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norms = nn.Embedding(12, 6), nn.ModuleList(nn.LayerNorm(6) for _ in range(2))
        self.token, self.inner, self.head = nn.Parameter(torch.randn(1, 1, 6)), nn.Linear(6, 6), nn.Linear(6, 12, False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        for norm in self.norms:
            y = norm(self.inner(y))
        return self.head(y.mean(1))


class Shuffle(nn.Module):
    """Sizes that are read from the input, groups, and activations of a mobile network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=4), nn.Linear(8, 4)
        self.norm, self.slopes = nn.GroupNorm(2, 8), nn.PReLU(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(F.hardswish(self.a(x)))
        n, c, h, w = x.size()
        x = self.slopes(self.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))
        return self.f(F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False).mean((2, 3)))


class Biases(nn.Module):
    """Biases of zero, which the newer exporter drops."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 2)
        self.hidden, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        for layer in (self.conv, self.up, self.hidden, self.head):
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(self.up(self.conv(x).relu()).relu().mean((2, 3))).tanh())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "biases": (Biases, torch.from_numpy(RNG.standard_normal((3, 3, 6, 6)).astype("float32"))),
    "tokens": (Tokens, torch.arange(12).reshape(3, 4)),
    "shuffle": (Shuffle, torch.from_numpy(RNG.standard_normal((3, 3, 6, 6)).astype("float32"))),
}


def assert_losses_of_two_steps(trainer: pock.Trainer, model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
    """Train a program and PyTorch's model for two steps; their losses are equal."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert trainer.step(x.numpy(), labels.numpy(), lr=0.1) == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_as_in_pytorch(name: str, dynamo: bool) -> None:
    torch.manual_seed(0)
    make, x = NETWORKS[name]
    model, labels = make().eval(), torch.tensor([0, 1, 2])
    trainer = pock.Trainer(pock.compile(exported(model, x, dynamo=dynamo), batch=3))
    assert_losses_of_two_steps(trainer, model, x, labels)
    wanted, ours = model.state_dict(), trainer.weights()
    absent = {name for name, _ in model.named_parameters()} - set(ours) - {"embed.weight"}
    assert not absent, f"parameters that the file has lost: {absent}"
    for name, array in ours.items():
        np.testing.assert_allclose(array, wanted[name].numpy(), atol=2e-5, err_msg=name)


class Normal(nn.Module):
    """A batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Dropout(0.3),
            nn.Linear(8, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


@pytest.fixture(scope="module")
def in_training_mode() -> tuple[nn.Module, torch.Tensor, Any]:
    """A network, its input, and its file by the exporter that keeps training mode."""
    torch.manual_seed(0)
    model, x, file = Normal(), torch.randn(4, 3, 6, 6), io.BytesIO()
    mode = {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False, "dynamo": False}
    torch.onnx.export(model, (x,), file, input_names=["x"], **mode)  # its statistics follow the example
    return model, x, onnx.load_from_string(file.getvalue())


def test_batch_norms_of_training_mode_do_as_compile_says(in_training_mode) -> None:
    model, x, file = in_training_mode
    model, labels = copy.deepcopy(model).train(), torch.tensor([0, 1, 2, 0])
    model.drop.p = 0.0
    trainer = pock.Trainer(pock.compile(file, batch_norm="batch", dropout=False))
    assert_losses_of_two_steps(trainer, model, x, labels)
    for name, array in trainer.weights().items():
        np.testing.assert_allclose(array, model.state_dict()[name].numpy(), atol=2e-5, err_msg=name)


def test_dropout_of_training_mode_is_drawn_and_checked(in_training_mode) -> None:
    model, x, file = in_training_mode
    program = pock.compile(file, batch_norm="frozen", scheme=pock.Scheme({"head.*": "full"}))
    assert program.manifest["check"]["against"].startswith("onnx ")
    trainer = pock.Trainer(program)
    np.testing.assert_allclose(trainer.predict(x.numpy()), model.eval()(x).detach().numpy(), atol=1e-5)
    losses = {trainer.step(x.numpy(), np.array([0, 1, 2, 0]), lr=0.0) for _ in range(3)}
    assert len(losses) == 3, "each step has a mask of its own"


def test_dropout_that_a_file_does_not_have_is_not_turned_on() -> None:
    with pytest.raises(ModelError, match="dropout=True .*TrainingMode.TRAINING"):
        load_model(node_model("Relu", [(2, 3)]), dropout=True)


class Distilled(nn.Module):
    """Two parameters that are equal at first, and become one node of the newer exporter."""

    def __init__(self) -> None:
        super().__init__()
        self.cls, self.distilled = (nn.Parameter(torch.zeros(1, 1, 4)) for _ in range(2))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.cls.expand(len(x), -1, -1), self.distilled.expand(len(x), -1, -1), x], 1).mean(1)


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(4), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.first(x) * self.second(x).tanh()).mean(1)


@pytest.mark.parametrize(("make", "lost"), [(Distilled, "cls, distilled"), (Norms, "second.weight, second.bias")])
def test_parameters_that_the_exporter_merged_are_refused(make: Callable[[], nn.Module], lost: str) -> None:
    with pytest.raises(ModelError, match=rf"of their own for {lost}.* merged .*optimize=False"):
        imported(exported(make().eval(), torch.randn(2, 3, 4), dynamo=True), 2)


def test_parameters_that_nothing_reads_are_not_merged() -> None:
    model = Norms().eval()
    model.forward = lambda x: model.first(x).mean(1)  # type: ignore[method-assign]
    with pytest.warns(pock.PockWarning, match="second"):
        imported(exported(model, torch.randn(2, 3, 4), dynamo=True), 2)


def test_a_part_that_the_exporter_computed_is_said() -> None:
    model = nn.RNN(3, 4, batch_first=True).eval()
    model.forward = lambda x: nn.RNN.forward(model, x)[0]  # type: ignore[method-assign]
    with pytest.warns(pock.PockWarning, match="bias_hh_l0.*weight_hh_l0.*optimize=False"):
        file = io.BytesIO()
        with contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(model, (torch.randn(2, 3, 3),), file, dynamo=True, verbose=False)
        imported(onnx.load_from_string(file.getvalue()))


def test_folded_weights_keep_their_names_and_values() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    x = torch.randn(2, 3, 7, 7)
    file = exported(model.eval(), x, dynamo=False)
    ours = imported(file, batch=2)
    assert len(ours.trainable) == 4
    np.testing.assert_allclose(outputs_of(ours, {"x": x.numpy()})[0], model(x).detach().numpy(), atol=1e-5)


def test_the_reference_takes_other_weights_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(5, 3)
    ours = imported(exported(model, x, dynamo=True), batch=5)
    weights = {name: 2 * array for name, array in ours.weights.items()}
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(2)
    got = reference_outputs(ours.source, {"x": x.numpy(), **weights})
    np.testing.assert_allclose(got[0], model(x).detach().numpy(), atol=1e-5)


def test_buffers_and_constants_are_not_trained() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(2.0))
            self.register_buffer("shift", torch.randn(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear((x + self.shift) * self.scale) * torch.tensor([0.5, 3.0])

    model = imported(exported(Scaled().eval(), torch.randn(2, 3), dynamo=True), batch=2)
    assert set(model.trainable) == {"linear.weight", "linear.bias", "scale"}
    assert set(model.parameters) == {"linear.weight", "linear.bias", "scale", "shift"}


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({}, "'w' of the imported model has no value"),
        ({"w": np.zeros(2, "float32")}, r"'w' is float32\[2\], .* float32\[3\]"),
        ({"w": np.zeros(3, "float64")}, "'w' is float64"),
        ({"w": np.zeros(3, "float32"), "v": np.zeros(3, "float32")}, "no place for the weight 'v'"),
    ],
)
def test_a_model_that_lost_a_weight_does_not_exist(weights: dict[str, np.ndarray], complaint: str) -> None:
    x, w = (relax.Var(name, relax.TensorType([3], "float32")) for name in "xw")
    builder = relax.BlockBuilder()
    with builder.function("main", [x, w]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.add(x, w))
        builder.emit_func_output(y)
    spec = TensorSpec("x", (3,), "float32")
    with pytest.raises(ModelError, match=complaint):
        Model(IRModule({"main": builder.get()["main"]}), (spec,), (spec,), records_of(weights), ("w",))
