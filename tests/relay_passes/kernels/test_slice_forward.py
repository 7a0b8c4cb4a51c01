"""A forward pass in slices of the batch computes what it computed before, and takes less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import AdaptiveAvgPool2d, Conv2d, Flatten, Linear, ReLU, Sequential
from tvm import IRModule, relax
from tvm.relax import op as R

import pock_tvm as pock
import relay_passes
from relay_passes.ir import bindings_of, op_name, shape_of, used_vars
from relay_passes.kernels import slice_forward
from relay_passes.operators import quantized, training
from tests.relay_passes.modules import function, operators, run

BATCH = 6


@pytest.fixture(autouse=True, scope="module")
def small_images() -> Iterator[None]:
    """As if kernels began in no time: images of tests are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slice_forward, "START", 0)
        patch.setattr(slice_forward, "DEARER", 1)
        yield


def sliced(mod: IRModule, frozen: tuple[str, ...] = ()) -> IRModule:
    return relay_passes.SliceForward(["main"], ["main"], frozen)(mod)


def same(mod: IRModule, *arrays: np.ndarray) -> IRModule:
    """The module in slices, after a check that it still computes the same."""
    new = sliced(mod)
    for before, after in zip(np.atleast_1d(run(mod, *arrays)), np.atleast_1d(run(new, *arrays)), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    return new


def joined_operators(mod: IRModule) -> set[str]:
    """The operators that write the parts of what is joined."""
    made = {binding.var: binding.value for binding in bindings_of(mod["main"])}
    joins = [value for value in made.values() if op_name(value) == "pock.join"]
    return {op_name(made[var]) for call in joins for var in used_vars(call)}


def narrowing(emit: Callable[..., Any], x: Any) -> Any:
    """What makes the end small, so that it pays to slice what is before."""
    rank = len(shape_of(x))
    return emit(R.max(x, axis=list(range(1, rank))))


def convolutions(emit: Callable[..., Any], x: Any, w: Any, v: Any, b: Any) -> Any:
    y = emit(R.nn.relu(emit(R.nn.conv2d(x, w, padding=1, data_layout="NHWC", kernel_layout="HWIO"))))
    y = emit(R.add(emit(R.nn.conv2d(y, v, padding=1, data_layout="NHWC", kernel_layout="HWIO")), y))
    y = emit(R.nn.max_pool2d(emit(R.add(y, b)), pool_size=2, strides=2, layout="NHWC"))
    return narrowing(emit, emit(R.nn.avg_pool2d(y, pool_size=3, strides=2, layout="NHWC")))


def winograd(emit: Callable[..., Any], x: Any, w: Any) -> Any:
    images = emit(training.winograd_input(x, padding=(1, 1, 1, 1)))
    products = emit(training.matmul(images, w, transpose_a=False, transpose_b=False))
    return narrowing(emit, emit(training.winograd_output(products, shape=(BATCH, 9, 9, 5))))


def attention(emit: Callable[..., Any], x: Any, w: Any, mask: Any) -> Any:
    rows = emit(R.reshape(x, (BATCH * 7, 8)))
    q = emit(training.matmul(rows, w, transpose_a=False, transpose_b=False))
    q = emit(R.permute_dims(emit(R.reshape(q, (BATCH, 7, 2, 4))), [0, 2, 1, 3]))
    weights = emit(training.matmul(q, q, transpose_a=False, transpose_b=True))
    weights = emit(R.nn.softmax(emit(R.add(weights, mask)), axis=-1))
    y = emit(R.permute_dims(emit(training.matmul(weights, q, transpose_a=False, transpose_b=False)), [0, 2, 1, 3]))
    y = emit(training.normalize(emit(R.reshape(y, (BATCH, 7, 8))), axes=(2,), epsilon=1e-5, center=True))
    return emit(R.mean(y, axis=[1, 2]))


def branches(emit: Callable[..., Any], x: Any, w: Any) -> Any:
    halves = emit(R.split(emit(R.exp(x)), 2, axis=-1))
    left, right = (emit(relax.TupleGetItem(halves, index)) for index in (0, 1))
    y = emit(R.concat([emit(R.multiply(right, w)), left], axis=1))
    y = emit(R.nn.pad(y, [0, 0, 1, 2, 0, 0]))
    return emit(R.sum(emit(R.strided_slice(y, [1], [1], [4])), axis=[1, 2]))


def masks(emit: Callable[..., Any], x: Any, w: Any) -> Any:
    y = emit(R.exp(emit(training.matmul(x, w, transpose_a=False, transpose_b=False))))
    bits = emit(training.pack_bits(emit(R.greater(y, relax.const(1.0))), axis=1))
    mask = emit(training.unpack_bits(bits, axis=1, extent=16))
    return emit(R.add(emit(R.max(y, axis=[1, 2])), emit(R.sum(emit(R.astype(mask, "float32")), axis=[1, 2]))))


BODIES: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "convolutions": (convolutions, {"x": (BATCH, 17, 13, 3), "w": (3, 3, 3, 7), "v": (3, 3, 7, 7), "b": (7,)}),
    "winograd": (winograd, {"x": (BATCH, 9, 9, 3), "w": (16, 3, 5)}),
    "attention": (attention, {"x": (BATCH, 7, 8), "w": (8, 8), "mask": (1, 1, 1, 7)}),
    "branches": (branches, {"x": (BATCH, 5, 6), "w": (3,)}),
    "masks": (masks, {"x": (BATCH, 16, 3), "w": (3, 33)}),
}


@pytest.mark.parametrize("name", BODIES)
def test_slices_compute_the_same(name: str) -> None:
    body, params = BODIES[name]
    found = operators(same(function(params, body)))
    assert "pock.part" in found
    assert "pock.join" in found


@pytest.mark.parametrize("slices", [1, 2, BATCH])
def test_the_number_of_slices_may_be_given(slices: int) -> None:
    mod = function(BODIES["convolutions"][1], BODIES["convolutions"][0])
    new = relay_passes.SliceForward(["main"], ["main"], slices=slices)(mod)
    parts = sum(op_name(binding.value) == "pock.part" for binding in bindings_of(new["main"]))
    assert parts == (slices if slices > 1 else 0)
    np.testing.assert_allclose(run(new), run(mod), rtol=1e-5, atol=1e-5)


def test_what_mixes_the_images_stays_whole() -> None:
    def body(emit: Callable[..., Any], x: Any) -> Any:
        y = emit(R.exp(x))
        center = emit(R.mean(y, axis=[0]))
        return emit(R.max(emit(R.subtract(y, center)), axis=[1]))

    same(function({"x": (BATCH, 33)}, body))


def test_what_reads_a_join_comes_after_all_slices() -> None:
    def body(emit: Callable[..., Any], x: Any, w: Any) -> Any:
        y = emit(training.matmul(x, w, transpose_a=False, transpose_b=False))
        small = emit(R.max(y, axis=[1]))
        order = emit(R.cumsum(small, axis=0))  # of all images, before the next operator of each
        return emit(R.add(emit(R.sum(emit(R.exp(emit(R.exp(y)))), axis=[1])), order))

    same(function({"x": (BATCH, 3), "w": (3, 100)}, body))


def test_a_view_that_the_rest_reads_is_made_of_what_is_joined() -> None:
    def body(emit: Callable[..., Any], x: Any, w: Any) -> Any:
        wide = emit(R.exp(emit(training.matmul(x, w, transpose_a=False, transpose_b=False))))
        small = emit(R.max(wide, axis=[2]))
        turned = emit(R.permute_dims(small, [1, 0]))
        flat = emit(R.reshape(small, (BATCH * 4,)))
        return emit(R.add(emit(R.sum(turned)), emit(R.sum(emit(R.cumsum(flat, axis=0))))))

    mod = same(function({"x": (BATCH, 4, 3), "w": (3, 50)}, body))
    assert joined_operators(mod) == {"relax.max"}


def test_constants_and_copies() -> None:
    """A constant of the batch's extent belongs to all images; what TVM makes a view of is made behind the slices."""
    rng = np.random.default_rng(0)
    table = relax.const(rng.standard_normal((BATCH, 40)).astype("float32"))

    def body(emit: Callable[..., Any], x: Any, w: Any) -> Any:
        y = emit(R.exp(emit(training.matmul(x, w, transpose_a=False, transpose_b=False))))
        small = emit(R.max(emit(R.exp(y)), axis=[1]))
        copy = emit(R.multiply(small, relax.const(1.0)))
        late = emit(R.max(emit(R.add(y, table)), axis=[1]))
        return emit(R.add(emit(R.cumsum(emit(R.add(small, copy)), axis=0)), late))

    same(function({"x": (BATCH, 3), "w": (3, 40)}, body))
    mod = same(function({"x": (BATCH, 3), "w": (3, 40)}, _twice))
    assert joined_operators(mod) == {"relax.max"}


def _twice(emit: Callable[..., Any], x: Any, w: Any) -> Any:
    wide = emit(R.exp(emit(training.matmul(x, w, transpose_a=False, transpose_b=False))))
    small = emit(R.max(wide, axis=[1]))
    copy = emit(R.multiply(small, relax.const(1.0)))
    return emit(R.add(emit(R.cumsum(small, axis=0)), emit(R.cumsum(copy, axis=0))))


def test_nothing_is_sliced_where_it_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    keeps_all = function({"x": (BATCH, 33)}, lambda emit, x: emit(R.exp(emit(R.exp(x)))))
    assert "pock.part" not in operators(sliced(keeps_all))
    heavy = function(  # weights would be read again and again
        {"x": (BATCH, 64), "w": (64, 512)},
        lambda emit, x, w: emit(R.max(emit(training.matmul(x, w, transpose_a=False, transpose_b=False)), axis=[1])),
    )
    assert "pock.part" not in operators(sliced(heavy))
    single = function(BODIES["branches"][1] | {"x": (1, 5, 6)}, branches)
    assert "pock.part" not in operators(sliced(single))
    monkeypatch.setattr(slice_forward, "START", 64 * 2**10)  # such kernels are begun for longer than they run
    monkeypatch.setattr(slice_forward, "DEARER", 1 / 16)
    body, params = BODIES["convolutions"]
    assert "pock.part" not in operators(sliced(function(params, body)))


@pytest.mark.parametrize("shape", [(6, 17, 13), (2, 15, 9), (3, 33, 7)], ids=str)
def test_parts_of_any_size_are_written_in_place(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of these images is a whole number of cache lines."""
    torch.manual_seed(0)
    body = [Conv2d(3, 7, 3, padding=1), ReLU(), Conv2d(7, 17, 3, stride=2), ReLU(), Conv2d(17, 5, 1), ReLU()]
    network = Sequential(*body, AdaptiveAvgPool2d(1), Flatten(), Linear(5, 3)).eval()
    batch, height, width = shape
    x, target = torch.randn(batch, 3, height, width), torch.arange(batch) % 3
    exported = torch.export.export(network, (x,))
    scheme = pock.Scheme({"*": "frozen", "8.*": "full", "4.bias": "full"})

    def losses() -> tuple[list[float], int]:
        program = pock.compile(exported, scheme=scheme)
        trainer = pock.Trainer(program)
        return [trainer.step([x.numpy()], target.numpy(), lr=0.1) for _ in range(3)], program.memory()["arena"]

    found, size = losses()
    monkeypatch.setattr(slice_forward._Usage, "best_cut", lambda *_: None)
    expected, whole = losses()
    assert found == expected
    assert size < 0.6 * whole


STEPS: dict[str, Callable[..., Any]] = {
    "exp": lambda emit, x: emit(R.tanh(x)),
    "add": lambda emit, x: emit(R.add(x, emit(R.nn.relu(x)))),
    "turn": lambda emit, x: emit(R.permute_dims(x, [0, 2, 1])),
    "across": lambda emit, x: emit(R.permute_dims(x, [1, 0, 2])),
    "rows": lambda emit, x: emit(R.reshape(x, (shape_of(x)[0], shape_of(x)[2], shape_of(x)[1]))),
    "double": lambda emit, x: emit(R.concat([x, emit(R.negative(x))], axis=2)),
    "below": lambda emit, x: emit(R.concat([x, x], axis=0)),
    "half": lambda emit, x: emit(R.strided_slice(x, [2], [0], [max(1, shape_of(x)[2] // 2)])),
    "softmax": lambda emit, x: emit(R.nn.softmax(x, axis=-1)),
    "over images": lambda emit, x: emit(R.subtract(x, emit(R.mean(x, axis=[0], keepdims=True)))),
    "over rows": lambda emit, x: emit(R.subtract(x, emit(R.max(x, axis=[1], keepdims=True)))),
    "product": lambda emit, x: emit(training.matmul(x, x, transpose_a=True, transpose_b=False)),
}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=7), st.sampled_from([2, 4, 6]))
def test_any_chain_computes_the_same(steps: list[str], batch: int) -> None:
    def body(emit: Callable[..., Any], x: Any) -> Any:
        for step in steps:
            x = STEPS[step](emit, x)
        return emit(R.sum(x, axis=[len(shape_of(x)) - 1]))

    same(
        function({"x": (batch, 3, 8)}, body), np.random.default_rng(0).standard_normal((batch, 3, 8)).astype("float32")
    )


def in_eight_bits(emit: Callable[..., Any], x: Any) -> Any:
    """A layer of 16 channels in eight bits: sums, then bytes."""
    weight = relax.const(np.zeros((1, 1, shape_of(x)[-1] // 4, 16), "int32"))
    vectors = [relax.const(np.zeros(16, kind)) for kind in ("int32", "int32", "int16")]
    geometry = {"strides": (1, 1), "padding": (0,) * 4, "dilation": (1, 1), "zero": 0}
    sums = emit(quantized.quantized_conv2d(x, weight, **geometry))
    return emit(quantized.requantize(sums, *vectors, zero=0))


def test_sums_of_layers_in_eight_bits_take_no_memory() -> None:
    """They stay in registers: the peak is that of bytes."""
    func = function({"x": (BATCH, 4, 4, 8)}, in_eight_bits, "uint8")["main"]
    assert slice_forward._Usage(func, ()).peak == BATCH * 4 * 4 * 16


def test_no_cut_stores_sums_of_layers_in_eight_bits() -> None:
    def body(emit: Callable[..., Any], x: Any) -> Any:
        return narrowing(emit, in_eight_bits(emit, in_eight_bits(emit, x)))

    func = function({"x": (BATCH, 4, 4, 8)}, body, "uint8")["main"]
    cuts = {op_name(bindings_of(func)[cut.last].value) for cut in slice_forward._Usage(func, ())._cuts()}
    assert "pock.requantize" in cuts
    assert "pock.quantized_conv2d" not in cuts


def test_gradients_that_an_update_frees_do_not_keep_a_step_from_slices() -> None:
    """Together they are larger than the first activations, and never in memory together."""
    layers = [layer for _ in range(10) for layer in (Linear(256, 256), ReLU())]
    model = Sequential(Conv2d(1, 16, 3, padding=1), ReLU(), AdaptiveAvgPool2d(4), Flatten(), *layers).eval()
    exported = torch.export.export(model, (torch.zeros(8, 1, 64, 64),))
    scheme = pock.Scheme({"*": "full", "0.*": "frozen"})
    program = pock.compile(exported, scheme=scheme, loss="mse", build=False, check=False)
    assert program.memory()["arena"] < 8 * 64 * 64 * 16 * 4
