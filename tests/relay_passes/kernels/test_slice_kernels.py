"""Chains of kernels in slices of the batch compute what they computed before, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Conv2d, Flatten, Linear, ReLU, Sequential
from tvm import IRModule, relax, te, tirx
from tvm.relax import op as R

import pock_tvm as pock
from relay_passes import ChooseKernels, SliceKernels
from relay_passes.ir import bindings_of, op_name, shape_of
from relay_passes.kernels import slice_kernels
from relay_passes.kernels.part_of_kernel import part_of_kernel
from relay_passes.operators.training import conv2d_data_gradient, conv2d_weight_gradient, matmul
from schedules.target import Traits
from tests.relay_passes.modules import TARGET, function, operators, run

BATCH = 4
CACHED = 1024
"""Bytes of the cache of these tests: their images are small."""
PARAMS = {"x": (BATCH, 16, 16, 16), "w": (1, 1, 16, 16), "v": (3, 3, 16, 16)}
GEOMETRY: dict[str, Any] = {"strides": (1, 1), "dilation": (1, 1), "groups": 1}


@pytest.fixture(autouse=True)
def quick_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if kernels began in no time, and weights were read in none."""
    monkeypatch.setattr(slice_kernels, "START", -(10**5))


def chosen(body: Callable[..., Any], params: dict[str, tuple[int, ...]] | None = None) -> IRModule:
    """Kernels of a function, unfused."""
    return ChooseKernels(["main"], TARGET)(function(PARAMS if params is None else params, body))


def convolved(emit: Callable[..., Any], x: Any, w: Any) -> Any:
    edge = shape_of(w)[0] // 2
    return emit(R.nn.conv2d(x, w, padding=(edge, edge), data_layout="NHWC", kernel_layout="HWIO"))


def chain(emit: Callable[..., Any], x: Any, w: Any, v: Any) -> Any:
    """Two convolutions, the data gradient of the second, the weight gradient of the first, in parts, and a sum."""
    first = convolved(emit, x, w)
    second = convolved(emit, emit(R.nn.relu(first)), v)
    data = conv2d_data_gradient(second, v, size=(16, 16), padding=(1, 1, 1, 1), **GEOMETRY)
    grad = emit(R.multiply(emit(data), first))
    weight = emit(conv2d_weight_gradient(x, grad, kernel_size=(1, 1), padding=(0, 0, 0, 0), **GEOMETRY))
    return emit(R.add(weight, emit(R.sum(grad, axis=[0, 1, 2]))))


@pytest.fixture
def little_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the machine's caches held no image."""
    monkeypatch.setattr(Traits, "cached_bytes", property(lambda _traits: CACHED))


@pytest.mark.usefixtures("little_cache")
def test_a_chain_runs_slice_by_slice() -> None:
    mod = chosen(chain)
    new = SliceKernels(CACHED, 1)(mod)
    np.testing.assert_array_equal(run(new), run(mod))
    calls = [binding.value for binding in bindings_of(new["main"]) if op_name(binding.value) == "relax.call_tir"]
    names = [call.args[0].name_hint for call in calls]
    names = [name for name in names if names.count(name) == BATCH]
    one = names[: len(names) // BATCH]
    assert names == one * BATCH
    assert any("conv2d_weight_gradient" in name for name in one)
    assert operators(new).count("pock.join") == 2, "partial sums for the weight and for the channels, and no image"


def test_what_the_rest_reads_is_joined() -> None:
    def body(emit: Callable[..., Any], x: Any, w: Any, v: Any) -> Any:
        first = convolved(emit, x, w)
        second = convolved(emit, first, v)
        mixed = emit(R.subtract(second, emit(R.mean(first, axis=[0], keepdims=True))))  # needs all images: ends a chain
        return emit(R.add(convolved(emit, mixed, w), first))

    mod = chosen(body)
    new = SliceKernels(CACHED, 1)(mod)
    assert operators(new).count("pock.join") >= 2
    np.testing.assert_array_equal(run(new), run(mod))


def test_a_kernel_that_needs_all_samples_waits_for_all() -> None:
    """As attention among samples does."""

    def body(emit: Callable[..., Any], x: Any, w: Any) -> Any:
        query = emit(matmul(x, w, transpose_a=False, transpose_b=False))
        key = emit(R.exp(query))
        scores = emit(matmul(query, key, transpose_a=False, transpose_b=True))
        return emit(R.multiply(scores, scores))

    mod = chosen(body, {"x": (64, 16), "w": (16, 16)})
    new = SliceKernels(CACHED, 1)(mod)
    assert operators(new).count("pock.join") == 3  # queries, keys and the result
    np.testing.assert_array_equal(run(new), run(mod))


@pytest.mark.parametrize(
    ("cached", "cores", "start"), [(10**6, 1, 0), (CACHED, 64, 0), (CACHED, 1, 10**6)], ids=["cache", "cores", "start"]
)
def test_nothing_is_sliced_where_it_does_not_pay(
    cached: int, cores: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_kernels, "START", start)
    assert "pock.part" not in operators(SliceKernels(cached, cores)(chosen(chain)))


def test_one_image_is_not_sliced() -> None:
    assert "pock.part" not in operators(SliceKernels(CACHED, 1)(chosen(chain, PARAMS | {"x": (1, 16, 16, 16)})))


ROWS = {"x": (BATCH, 5, 16), "w": (16, 8)}
PARTS: dict[str, tuple[Callable[..., Any], list[int] | None]] = {
    "matmul": (lambda emit, x, w: emit(matmul(x, w, transpose_a=False, transpose_b=False)), [0, 2]),
    "exp": (lambda emit, x, w: emit(R.exp(x)), [0, 1]),
    "flip": (lambda emit, x, w: emit(R.flip(x, axis=0)), None),
    "shifted": (lambda emit, x, w: emit(R.strided_slice(x, [0], [1], [3])), None),
    "across": (lambda emit, x, w: emit(R.permute_dims(x, [1, 0, 2])), None),
    "sum": (lambda emit, x, w: emit(R.sum(x, axis=[0])), None),
    "repeated": (lambda emit, x, w: emit(R.concat([x, x], axis=0)), None),
    "places": (lambda emit, x, w: emit(R.cumsum(x, axis=0)), None),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_kernel_reads_the_same_part_or_all(name: str) -> None:
    body, expected = PARTS[name]
    mod = chosen(body, ROWS)
    call = next(binding.value for binding in bindings_of(mod["main"]) if op_name(binding.value) == "relax.call_tir")
    kernel = mod[call.args[0]]
    found = part_of_kernel(kernel, 2)
    assert (found and found[1]) == expected
    if found is not None:
        whole, part = ([int(each.shape[0]) for each in func.params] for func in (kernel, found[0]))
        assert part == [extent // (2 if at in found[1] else 1) for at, extent in enumerate(whole)]
    assert part_of_kernel(kernel, 3) is None  # four images are no three equal parts


def test_a_kernel_of_places_is_not_cut() -> None:
    """A value that depends on the number of its image, not on the image alone, differs in a part of the batch."""
    x = te.placeholder((BATCH, 8), name="x")
    y = te.compute((BATCH, 8), lambda n, i: x[n, i] + tirx.Cast("float32", n), name="y")
    assert part_of_kernel(te.create_prim_func([x, y]), 2) is None


@pytest.mark.usefixtures("little_cache")
def test_a_step_in_slices_learns_what_torch_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole program: weights are updated behind the slices that read them."""
    monkeypatch.setenv("POCK_CACHE", "off")
    torch.manual_seed(0)
    model = Sequential(Conv2d(3, 16, 1), ReLU(), Conv2d(16, 16, 3, padding=1), ReLU(), Flatten(), Linear(16 * 144, 3))
    x, y = torch.randn(BATCH, 3, 12, 12), torch.tensor([0, 1, 2, 0])
    program = pock.compile(torch.export.export(model, (x,)), optimizer=pock.SGD())
    assert program.manifest["step"]["choices"]["sliced_chains"]["decided"]
    trainer, optimizer = pock.Trainer(program), torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        np.testing.assert_allclose(trainer.step(x.numpy(), y.numpy(), lr=0.05), loss.item(), rtol=1e-5)


def test_slices_keep_a_value_that_is_a_result() -> None:
    def body(emit: Callable[..., Any], x: Any, w: Any, v: Any) -> Any:
        return relax.Tuple([first := convolved(emit, x, w), convolved(emit, first, v)])

    mod = chosen(body)
    new = SliceKernels(CACHED, 1)(mod)
    assert operators(new).count("pock.join") == 2
    for before, after in zip(run(mod), run(new), strict=True):
        np.testing.assert_array_equal(after, before)
