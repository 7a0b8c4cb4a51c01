"""Products in tiles and depthwise convolutions of GPUs, on OpenCL against NumPy in double precision.

What every target computes of every shape is in ``tests/schedules/test_products.py``. Here: each shape of a tile, long
sums in parts, what is fused before and behind, and the texts of all dialects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tvm import te, tirx
from tvm.target import Target

from schedules.decisions import Option
from schedules.gpu import GpuTarget, gpu_target
from schedules.gpu.products.tiles import Problem, cost, tiles
from schedules.gpu.traits import DIALECTS
from schedules.kernels.conv2d import conv2d_weight_gradient
from schedules.kernels.indexing import gather_channels
from schedules.kernels.matmul import matmul
from tests.schedules.kernels import HOST, TARGETS, assert_close, call, defined, doubles, noise, scheduled
from tests.schedules.references import weight_gradient_reference
from tests.schedules.test_epilogues import EPILOGUES, MOVED
from tests.schedules.test_products import Convolution, Row, product, weights

OPENCL = TARGETS["opencl"]

GPUS = {name: gpu_target(Target({"kind": "cuda", "arch": "sm_87"} if name == "cuda" else name)) for name in DIALECTS}


def of(convolution: Convolution, kind: str = "") -> Row:
    """The kernel of a convolution: forward, or of its data or weight gradient."""
    return next(row for row in convolution.rows() if row.name == convolution.name + (f", {kind}" if kind else ""))


def tiled(row: Row, target: GpuTarget = OPENCL, **decisions: Option) -> tirx.PrimFunc:
    return target.schedule(defined(row.kernel, *row.arrays(), **row.options), decisions)


def is_tiled(func: tirx.PrimFunc) -> bool:
    """Whether a schedule has sums in registers, as the fallback has not."""
    return "sums" in func.script()


ODD = product("odd", (33, 47), (70, 47), "NT")
EVEN = product("even", (48, 40), (48, 136), "TN")
PADDED = of(Convolution("padded", (2, 7, 9, 12), (3, 3, 12, 20), padding=(1, 1, 1, 1)))
STRIDED = of(Convolution("strided", (1, 9, 12, 8), (3, 3, 8, 16), strides=(2, 2), padding=(1, 1, 1, 1)), "data")
GROUPS = Convolution("groups", (1, 7, 7, 24), (3, 3, 8, 12), padding=(1, 1, 1, 1), groups=3)
LONG = weights("of many pixels", (2, 17, 20, 12), (2, 17, 20, 20), 3, padding=[1] * 4)
DEPTHWISE = Convolution("depthwise", (1, 12, 9, 24), (3, 3, 1, 24), padding=(1, 1, 1, 1), groups=24)
DECIDED: list[tuple[Row, dict[str, Option]]] = [
    (ODD, {"tile": (8, 8, 16, 1, 1), "splits": 1}),
    (ODD, {"tile": (8, 128, 8, 4, 4), "splits": 2}),
    (ODD, {"tile": (64, 64, 16, 4, 4), "splits": 1}),
    (EVEN, {"tile": (128, 128, 8, 8, 8), "splits": 1}),
    (EVEN, {"tile": (16, 64, 16, 2, 4), "splits": 1}),
    (PADDED, {"tile": (128, 32, 8, 8, 4), "splits": 1}),
    (PADDED, {"tile": (32, 16, 16, 1, 4), "splits": 1}),
    (STRIDED, {"tile": (64, 16, 16, 4, 4), "splits": 1}),
    (of(GROUPS, "weight"), {"tile": (32, 8, 16, 2, 2), "splits": 2}),
    (LONG, {"tile": (64, 32, 16, 4, 8), "splits": 8}),
    (of(DEPTHWISE), {"rows": 5, "threads": 64}),
    (of(DEPTHWISE, "weight"), {"rows": 4, "sharers": 1, "splits": 4, "threads": 64}),
    (of(DEPTHWISE, "weight"), {"rows": 9, "sharers": 4, "splits": 1, "threads": 128}),
]
"""Kernels, and decisions that their defaults are not."""


@pytest.mark.parametrize(("row", "decisions"), DECIDED, ids=[f"{row.name} {each}" for row, each in DECIDED])
def test_decisions(row: Row, decisions: dict[str, Option]) -> None:
    first, second = call(tiled(row, **decisions), *row.arrays(), target=OPENCL, times=2)
    assert_close(first, row.expected())
    assert (first == second).all(), "sums differ from run to run"


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("row", [STRIDED, LONG], ids=lambda row: row.name)
def test_epilogue(row: Row, epilogue: str) -> None:
    """In registers, where a sum is complete; behind the sum of parts, where it is not."""
    behind, reference, kinds = EPILOGUES[epilogue]
    result = row.expected()
    shapes = {"columns": result.shape[-1:], "all": result.shape, "number": ()}
    beside = noise(epilogue, *(shapes[kind] for kind in kinds))

    def fused(*operands: te.Tensor, **options: Any) -> te.Tensor:
        return behind(row.kernel(*operands[:2], **options), *operands[2:])

    arrays = [*row.arrays(), *beside]
    func = scheduled(fused, *arrays, target=OPENCL, **row.options)
    assert is_tiled(func)
    assert_close(call(func, *arrays, target=OPENCL), reference(result, *doubles(*beside)))


@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize("row", [ODD, STRIDED], ids=lambda row: row.name)
def test_what_moves_results(row: Row, moved: str) -> None:
    """A tile of the product is not a tile of what was made of it: no element may stay unwritten."""
    behind, reference = MOVED[moved]
    arrays = row.arrays()
    kernel = lambda *operands, **options: behind(row.kernel(*operands, **options))  # noqa: E731
    func = scheduled(kernel, *arrays, target=OPENCL, **row.options)
    assert_close(call(func, *arrays, target=OPENCL), reference(row.expected()))


def where_positive(y: te.Tensor, other: te.Tensor) -> te.Tensor:
    """As the gradient of an activation that is cut: the condition is a number on its way."""
    positive = te.compute(y.shape, lambda *i: other(*i) > 0, name="positive")
    zero = tirx.const(0, "float32")
    kept = te.compute(y.shape, lambda *i: tirx.Select(positive(*i).astype("int64") > 0, y(*i), zero), name="kept")
    return te.compute(y.shape, lambda *i: kept(*i) + positive(*i).astype("float32"), name="counted")


@pytest.mark.parametrize("row", [EVEN, of(DEPTHWISE)], ids=lambda row: row.name)
@pytest.mark.parametrize("stored", [False, True])
def test_conditions_in_vectors(row: Row, stored: bool) -> None:
    """A true one is not -1; one that comes from memory as 1 is true."""
    result = row.expected()
    (other,) = noise("conditions", result.shape)

    def fused(a: te.Tensor, b: te.Tensor, other: te.Tensor, **options: Any) -> te.Tensor:
        y = row.kernel(a, b, **options)
        if not stored:
            return where_positive(y, other)
        return te.compute(y.shape, lambda *i: tirx.Select(other(*i), y(*i), tirx.const(0, "float32")), name="kept")

    arrays = [*row.arrays(), other > 0 if stored else other]
    func = scheduled(fused, *arrays, target=OPENCL, **row.options)
    assert is_tiled(func)
    expected = np.where(other > 0, result + (0 if stored else 1), 0)
    assert_close(call(func, *arrays, target=OPENCL), expected)


def test_gathered_channels_are_read_where_they_lie() -> None:
    x, grad = noise("gathered", (2, 9, 9, 16), (2, 9, 9, 12))
    channels = np.array([3, 0, 15, 7, 8], "int32")
    options: dict[str, Any] = {
        "strides": [1, 1],
        "padding": [1] * 4,
        "dilation": [1, 1],
        "groups": 1,
        "kernel_size": [3, 3],
    }

    def kernel(x: te.Tensor, channels: te.Tensor, grad: te.Tensor) -> te.Tensor:
        return conv2d_weight_gradient(gather_channels(x, channels, axis=3), grad, **options)

    func = scheduled(kernel, x, channels, grad, target=OPENCL)
    assert is_tiled(func)
    expected = weight_gradient_reference(*doubles(x[..., channels], grad), **options)
    assert_close(call(func, x, channels, grad, target=OPENCL), expected)


def test_a_sum_before_the_product_is_left_to_the_fallback() -> None:
    def kernel(x: te.Tensor, b: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, 3), name="k")
        a = te.compute(x.shape[1:], lambda i, j: te.sum(x(k, i, j), axis=k), name="before")
        return matmul(a, b, transpose_a=False, transpose_b=False)

    x, b = noise("sum before", (3, 17, 7), (7, 24))
    func = scheduled(kernel, x, b, target=OPENCL)
    assert not is_tiled(func)
    assert_close(call(func, x, b, target=OPENCL), x.astype("float64").sum(0) @ b)


def test_taps_without_a_progression_are_left_to_the_fallback() -> None:
    """With a dilation of the stride, one phase has all taps, the others none."""
    row = of(Convolution("one phase", (1, 9, 9, 3), (2, 2, 3, 8), strides=(2, 2), dilation=(2, 2)), "data")
    func = tiled(row)
    assert not is_tiled(func)
    assert_close(call(func, *row.arrays(), target=OPENCL), row.expected())


def test_no_phase_reads_the_taps_of_another() -> None:
    """A NaN in a weight reaches the results that a CPU's reaches, and no others."""
    grad, weight = STRIDED.arrays()
    weight[0, 0, 3, 2] = np.nan
    results = [call(STRIDED.schedule(target), grad, weight, target=target) for target in (HOST, OPENCL)]
    assert np.isnan(results[0]).any()
    assert not np.isnan(results[0]).all()
    np.testing.assert_array_equal(np.isnan(results[1]), np.isnan(results[0]))


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_tiles_fit(gpu: GpuTarget) -> None:
    traits = gpu.traits
    offered = tiles(traits)
    assert offered
    for tile in offered:
        assert tile.shared_bytes((4, 4)) <= traits.shared_bytes
        assert tile.threads <= min(traits.threads, 256)
        problem = Problem(1, 1000, 1000, 1000, (4, 4), (4, 4), 10**6)
        assert cost(problem, tile, 1, traits) > 0


LARGE: list[tuple[Sequence[int], Sequence[int], str]] = [
    ((256, 128), (128, 256), "NN"),
    ((256, 128), (256, 128), "NT"),
    ((128, 256), (128, 256), "TN"),
]


@pytest.mark.parametrize("row", [product("large", a, b, how) for a, b, how in LARGE], ids=lambda row: row.name)
def test_vectors_in_cuda(row: Row) -> None:
    """All that is read from memory, or written to it, is read and written by 128 bits."""
    func = tiled(row, GPUS["cuda"], tile=(128, 128, 8, 8, 8), splits=1)
    text = json.loads(GPUS["cuda"].code(func))["text"]
    body = text[text.rindex("__launch_bounds__") :]
    touched = re.findall(r"[^\n]*v_(?:operand\d|matmul)_ptr \+[^\n]*|[^\n]*v_(?:operand\d|matmul)_ptr\[[^\n]*", body)
    assert touched
    assert all("float4*)" in line for line in touched)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
@pytest.mark.parametrize("row", [ODD, STRIDED, LONG, of(DEPTHWISE, "weight")], ids=lambda row: row.name)
def test_texts(gpu: GpuTarget, row: Row) -> None:
    """Each dialect's text holds a function a launch, of at most the GPU's threads."""
    code = json.loads(gpu.code(tiled(row, gpu).with_attr("global_symbol", "kernel")))
    assert code["launches"]
    for symbol, grid, block, _ in code["launches"]:
        assert symbol in code["text"]
        assert np.prod(block) <= gpu.traits.threads
        assert np.prod(grid) >= 1
