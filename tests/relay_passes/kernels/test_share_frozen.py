"""All products with a frozen weight read one copy of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op as R

from relay_passes import ChooseKernels, LiftFrozen, PackWeights, PadFrozen, ShareFrozen, StraightenProducts, Winograd
from relay_passes.ir import bindings_of, bytes_of, op_name, returned
from relay_passes.kernels.share_frozen import tables_of
from relay_passes.operators.training import conv2d_data_gradient, matmul
from schedules.cpu import CpuTarget
from schedules.cpu.traits import CpuTraits
from tests.relay_passes.modules import TARGET, function, operators, random, run

SMALL_CACHE = CpuTarget(CpuTraits(lanes=16, registers=32, cores=2, cache_bytes=2**14), tvm.target.Target("llvm"))
"""A CPU on which even small weights are packed."""


def linear(emit: Callable, x: relax.Expr, dy: relax.Expr, w: relax.Expr) -> relax.Expr:
    """A linear layer and its data gradient: X W^T, and dY W."""
    y = emit(matmul(x, emit(R.permute_dims(w, [1, 0])), transpose_a=False, transpose_b=False))
    dx = emit(matmul(dy, emit(R.permute_dims(w, [1, 0])), transpose_a=False, transpose_b=True))
    return emit(relax.Tuple([y, dx]))


def convolution(size: int, padding: int, stride: int = 1) -> Callable:
    """A convolution of a [C_out, C_in, R, S] weight and its data gradient, channels last."""

    def body(emit: Callable, x: relax.Expr, dy: relax.Expr, w: relax.Expr) -> relax.Expr:
        weight = emit(R.permute_dims(w, [2, 3, 1, 0]))
        y = emit(R.nn.conv2d(x, weight, stride, padding, data_layout="NHWC", kernel_layout="HWIO", out_layout="NHWC"))
        geometry = {"strides": [stride] * 2, "padding": [padding] * 4, "dilation": [1, 1], "groups": 1}
        dx = emit(conv2d_data_gradient(dy, weight, **geometry, size=[size, size]))
        return emit(relax.Tuple([y, dx]))

    return body


def turned_filter(emit: Callable, x: relax.Expr, dy: relax.Expr, w: relax.Expr) -> relax.Expr:
    """A matrix that is a product's weight and, transposed, 3x3 taps of 16 by 16 channels that a gradient reads."""
    rows = emit(R.reshape(x, (98, 48)))
    y = emit(matmul(rows, w, transpose_a=False, transpose_b=False))
    weight = emit(R.reshape(emit(R.permute_dims(w, [1, 0])), (3, 3, 16, 16)))
    geometry = {"strides": [1, 1], "padding": [1] * 4, "dilation": [1, 1], "groups": 1}
    return emit(relax.Tuple([y, emit(conv2d_data_gradient(dy, weight, **geometry, size=[7, 7]))]))


def heads(emit: Callable, x: relax.Expr, dy: relax.Expr, w: relax.Expr) -> relax.Expr:
    """One matrix for each head, which all elements of the batch share, and its data gradient."""
    y = emit(matmul(x, w, transpose_a=False, transpose_b=False))
    dx = emit(matmul(dy, w, transpose_a=False, transpose_b=True))
    return emit(relax.Tuple([y, dx]))


CASES = {
    "few rows": (linear, (48, 64), (48, 96), (96, 64)),
    "many rows": (linear, (2, 170, 64), (2, 170, 96), (96, 64)),
    "rows that fill no vectors": (linear, (17, 64), (17, 96), (96, 64)),
    "one row": (linear, (1, 64), (1, 96), (96, 64)),
    "odd sizes": (linear, (48, 33), (48, 17), (17, 33)),
    "half vectors": (linear, (48, 40), (48, 72), (72, 40)),
    "half vectors, many rows": (linear, (3, 67, 24), (3, 67, 19), (19, 24)),
    "pointwise": (convolution(7, 0), (2, 7, 7, 32), (2, 7, 7, 48), (48, 32, 1, 1)),
    "3x3": (convolution(7, 1), (2, 7, 7, 32), (2, 7, 7, 48), (48, 32, 3, 3)),
    "3x3, odd channels": (convolution(7, 1), (2, 7, 7, 3), (2, 7, 7, 17), (17, 3, 3, 3)),
    "3x3 of stride 2": (convolution(7, 1, 2), (2, 7, 7, 32), (2, 4, 4, 48), (48, 32, 3, 3)),
    "5x5": (convolution(9, 2), (1, 9, 9, 16), (1, 9, 9, 32), (32, 16, 5, 5)),
    "axes that cut through pieces": (turned_filter, (2, 7, 7, 48), (2, 7, 7, 16), (48, 48)),
    "heads": (heads, (4, 16, 64), (4, 16, 96), (4, 64, 96)),
    "heads of a batch": (heads, (3, 4, 16, 64), (3, 4, 16, 96), (4, 64, 96)),
    "heads of one element": (heads, (1, 16, 64), (1, 16, 96), (4, 64, 96)),
    "one head of a batch": (heads, (3, 16, 64), (3, 16, 96), (1, 64, 96)),
}


def prepared(mod: tvm.IRModule, target: CpuTarget, share: bool, winograd: bool) -> tvm.IRModule:
    passes = [PadFrozen(["w"], ["main"], target)] if share else []
    passes += [StraightenProducts(["w"])]
    passes += [Winograd(["w"], fewest_multiplications=0)] if winograd else []
    passes += [PackWeights(["w"], target)]
    passes += [ShareFrozen(["w"], ["main"])] if share else []
    views = relax.transform.RewriteDataflowReshape()
    return tvm.transform.Sequential([*passes, ChooseKernels(["main"], target), views, LiftFrozen(["w"], ["main"])])(mod)


def held(mod: tvm.IRModule) -> int:
    """The bytes of the weight that ``main`` takes, in all layouts."""
    return sum(bytes_of(param) for param in mod["main"].params if param.name not in ("x", "dy"))


@pytest.mark.parametrize("winograd", [False, True])
@pytest.mark.parametrize("target", [TARGET, SMALL_CACHE], ids=["plain", "packed"])
@pytest.mark.parametrize("name", CASES)
def test_one_copy_computes_the_same(name: str, target: CpuTarget, winograd: bool) -> None:
    body, *shapes = CASES[name]
    mod = function(dict(zip(("x", "dy", "w"), shapes, strict=True)), body, inputs=2)
    one, two = (prepared(mod, target, share, winograd) for share in (True, False))
    x, dy, w = random(*shapes)
    results = []
    for lifted in (one, two):
        layouts = run(lifted, w, name="prepare") if returned(lifted["prepare"]) else []
        layouts = layouts if isinstance(layouts, list) else [layouts]
        arrays = {f"prepared.{index}": array for index, array in enumerate(layouts)} | {"x": x, "dy": dy, "w": w}
        results.append(run(lifted, *(arrays[param.name] for param in lifted["main"].params)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    padded = 4 * math.prod(target.layouts.padded_columns(extent) for extent in w.shape) if body is linear else 0
    assert held(one) in (w.nbytes, w.nbytes * 16 // 9, padded)
    assert held(two) >= 2 * w.nbytes


def test_a_table_stays_as_it_is_looked_up() -> None:
    def body(emit: Callable, x: relax.Expr, w: relax.Expr) -> relax.Expr:
        logits = emit(matmul(x, emit(R.permute_dims(w, [1, 0])), transpose_a=False, transpose_b=False))
        return emit(R.add(logits, emit(R.sum(emit(R.take(w, relax.const([1, 2], "int64"), axis=0))))))

    mod = function({"x": (4, 16), "w": (32, 16)}, body)
    assert tables_of(mod["main"], ["w"]) == {"w"} and not tables_of(mod["main"], [])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_is_padded_along_the_columns_of_its_products(transposed: bool) -> None:
    def body(emit: Callable, x: relax.Expr, w: relax.Expr) -> relax.Expr:
        return emit(matmul(x, w, transpose_a=False, transpose_b=transposed))

    shapes = (5, 19 if transposed else 24), (24, 19)
    mod = function(dict(zip("xw", shapes, strict=True)), body)
    padded = PadFrozen(["w"], ["main"], TARGET)(mod)
    (pad,) = (b.value for b in bindings_of(padded["main"]) if op_name(b.value) == "relax.nn.pad")
    assert [int(width) for width in pad.attrs.pad_width] == ([0, 8, 0, 0] if transposed else [0, 0, 0, 13])
    x, w = random(*shapes)
    np.testing.assert_array_equal(run(padded, x, w), run(mod, x, w))


def test_a_weight_that_is_read_by_more_than_products_is_not_padded() -> None:
    def body(emit: Callable, x: relax.Expr, w: relax.Expr) -> relax.Expr:
        return emit(R.add(emit(matmul(x, w, transpose_a=False, transpose_b=False)), emit(R.sum(w))))

    mod = function({"x": (5, 24), "w": (24, 19)}, body)
    assert operators(PadFrozen(["w"], ["main"], TARGET)(mod)) == operators(mod)


def test_weights_of_one_layout_are_left_alone() -> None:
    def body(emit: Callable, x: relax.Expr, w: relax.Expr) -> relax.Expr:
        return emit(matmul(x, emit(R.permute_dims(w, [1, 0])), transpose_a=False, transpose_b=False))

    mod = function({"x": (4, 16), "w": (32, 16)}, body)
    assert operators(ShareFrozen(["w"], ["main"])(mod)) == operators(mod)


def test_a_copy_is_not_prepared_again() -> None:
    body, *shapes = CASES["3x3"]
    mod = function(dict(zip(("x", "dy", "w"), shapes, strict=True)), body, inputs=2)
    lifted = prepared(mod, TARGET, True, False)
    made = {name: [kernel_of(binding.value) for binding in bindings_of(lifted[name])] for name in ("main", "prepare")}
    assert sum(kernel.startswith("relayout") for kernel in made["main"]) == 1
    assert not any(kernel.startswith("relayout") for kernel in made["prepare"])


def kernel_of(value: relax.Expr) -> str:
    return value.args[0].name_hint if op_name(value) == "relax.call_tir" else ""
