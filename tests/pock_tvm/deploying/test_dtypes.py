"""Inputs of all dtypes that programs take, which ONNX has: bundles read them as the trainer does, or refuse them."""

import shutil

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.deploying.bundle import deploy

from .bundles import RATE, loaded

onnx = pytest.importorskip("onnx", reason="needs onnx (the extra onnx)")
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing")
ROWS, COLUMNS, CLASSES = 4, 6, 3
DTYPES = ["bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))]


def program_of(*dtypes):
    """A layer over the sum of an input of each dtype."""
    helper, single = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.random.default_rng(0).standard_normal((COLUMNS, CLASSES)).astype("float32")
    nodes = [helper.make_node("Cast", [f"{each}_in"], [f"{each}_out"], to=single) for each in dtypes]
    nodes += [
        helper.make_node("Sum", ["x", *(f"{each}_out" for each in dtypes)], ["sum"]),
        helper.make_node("MatMul", ["sum", "weight"], ["y"]),
    ]
    types = {each: helper.np_dtype_to_tensor_dtype(np.dtype(each)) for each in dtypes}
    inputs = [("x", single), *((f"{each}_in", kind) for each, kind in types.items())]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info(name, kind, [ROWS, COLUMNS]) for name, kind in inputs],
        [helper.make_tensor_value_info("y", single, [ROWS, CLASSES])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return pock.compile(model, check=False)


def array_of(dtype, rng):
    if dtype.startswith("float"):
        return rng.standard_normal((ROWS, COLUMNS)).astype(dtype)
    return rng.integers(0 if dtype.startswith(("u", "b")) else -2, 2, (ROWS, COLUMNS)).astype(dtype)


@pytest.mark.parametrize("source", [False, True], ids=["objects", "source"])
def test_inputs(source, tmp_path):
    program = program_of(*DTYPES)
    net = loaded(deploy(program, tmp_path / "net", cc="gcc", source=source)).Net()
    trainer, rng = pock.Trainer(program, threads=1), np.random.default_rng(0)
    net.set_rate(RATE)
    for _ in range(3):
        inputs = [array_of(each["dtype"], rng) for each in program.manifest["inputs"]]
        labels = rng.integers(0, CLASSES, ROWS)
        ours, theirs = net.train_step(*inputs, labels), trainer.step(inputs, labels, lr=RATE)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5 if source else 0)


def test_half_precision_is_refused(tmp_path):
    program = program_of("float16")
    with pytest.raises(pock.PockError, match="'float16_in' is float16, which C has no type for"):
        deploy(program, tmp_path / "net", cc="gcc")
    assert not list(tmp_path.iterdir())
