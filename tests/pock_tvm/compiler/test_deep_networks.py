"""Networks of many layers: nothing calls itself once for each of them, and twice the layers take twice the work."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op as R

from pock_tvm.compiler.lowered import Lowered
from pock_tvm.compiler.lowering import lower
from pock_tvm.compiler.training_options import Training
from pock_tvm.frontend.model import Model, TensorSpec, records_of
from relay_passes.analysis.aliasing import Aliasing
from relay_passes.ir import bindings_of, bytes_of, op_name
from relay_passes.memory.fit import Fit
from relay_passes.memory.recompute import recomputed
from tests.relay_passes.modules import BUILDER, function

FRAMES = 150
"""Calls inside calls that a compiler may need whatever the network's depth is."""


@pytest.fixture
def few_frames() -> Iterator[None]:
    """As few as do for a network of one layer."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + FRAMES)
    yield
    sys.setrecursionlimit(limit)


def residual(layers: int, width: int = 16) -> Model:
    """A network of residual blocks, each a matrix product with a norm in front of it."""
    params = {"x": (8, width)} | {f"{index}.weight": (width, width) for index in range(layers)}
    params |= {f"{index}.bias": (width,) for index in range(layers)}

    def body(emit, x, *weights):
        for weight, bias in zip(weights[:layers], weights[layers:], strict=True):
            scale = emit(R.sqrt(emit(R.mean(emit(x * x), axis=[1], keepdims=True) + relax.const(1e-5))))
            y = emit(emit(R.matmul(emit(x / scale), weight)) + bias)
            x = emit(x + emit(R.nn.relu(y)))
        return x

    mod = function(params, body)
    spec = TensorSpec("x", params.pop("x"), "float32")
    zeros = {name: np.zeros(shape, "float32") for name, shape in params.items()}
    return Model(mod, (spec,), (spec,), records_of(zeros), tuple(params))


def lowered(layers: int) -> Lowered:
    """All phases but the building of kernels."""
    model = residual(layers)
    training = Training(dict.fromkeys(model.trainable), {"kind": "cross_entropy"})
    found = lower(model, training, BUILDER)
    assert isinstance(found, Fit)
    return found.value


def test_two_hundred_layers_need_no_deeper_calls(few_frames: None) -> None:
    arena = lowered(200).entries["train_step"].workspace
    assert arena.arena_bytes <= 1.01 * arena.lower_bound


def test_a_long_chain_is_computed_again_or_not_at_all(few_frames: None) -> None:
    """Of 600 kernels in a row whose first value is read again at the end."""

    def body(emit, x):
        first = value = emit(R.exp(x))
        for _ in range(600):
            value = emit(R.sin(value))
        return emit(value + first)

    mod = relax.transform.LegalizeOps()(function({"x": (4, 4)}, body))
    func = mod["main"]
    size = bytes_of(func.params[0])
    found = recomputed(func, 2 * size, {})
    assert found.peak == 2 * size
    calls = [binding for binding in bindings_of(found.function) if op_name(binding.value) == "relax.call_tir"]
    assert len(calls) == 603  # the first one twice


def test_a_long_chain_of_views_names_one_memory(few_frames: None) -> None:
    x = relax.Var("x", relax.TensorType((4, 4), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            value = first = builder.emit_te(lambda a: tvm.te.compute(a.shape, lambda *i: a(*i) + 1, "plus"), x)
            for index in range(600):
                value = builder.emit(R.reshape(value, (2, 8) if index % 2 else (8, 2)))
            output = builder.emit_output(builder.emit_te(tvm.topi.exp, value))
        builder.emit_func_output(output)
    aliasing = Aliasing(builder.get()["main"])
    assert aliasing.buffers(value) == [(first, 0)]
    assert aliasing.offset(value) == 0


def test_calls_grow_with_the_layers_and_not_with_their_square() -> None:
    counts = []
    for layers in (20, 40):
        count = 0

        def counted(_frame: object, event: str, _arg: object) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(counted)
        try:
            lowered(layers)
        finally:
            sys.setprofile(None)
        counts.append(count)
    assert counts[1] < 2.2 * counts[0], counts
    assert np.all(np.array(counts) > 0)
