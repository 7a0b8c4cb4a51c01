"""Products in eight bits: the same integers on every target, and NumPy's."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from tvm import te
from tvm.target import Target

from relay_passes.analysis.fixed_point import packed, taps_packed
from schedules.cpu import CpuTarget
from schedules.cpu.traits import CpuTraits
from schedules.kernels import quantized
from tests.schedules.kernels import HOST, LLVM, defined, run

X86 = {"avx512vnni": "cascadelake", "avx512bw": "skylake-avx512", "avx2": "haswell", "sse2": "x86-64"}
LANES = {"avx512vnni": 16, "avx512bw": 16, "avx2": 8, "sse2": 4}


def x86(feature: str, lanes: int | None = None) -> CpuTarget:
    """A target of this machine's triple that has a feature, and nothing newer."""
    llvm = Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": X86[feature], "num-cores": 2})
    lanes = lanes or LANES[feature]
    return CpuTarget(CpuTraits(lanes=lanes, registers=32 if lanes == 16 else 16, cores=2), llvm)


IS_X86 = str(LLVM.attrs.get("mtriple", "")).startswith("x86_64")
CPUS = {
    "host": HOST,
    "no vectors": CpuTarget(CpuTraits(lanes=1, registers=32, cores=1), LLVM),
    "four lanes": CpuTarget(CpuTraits(lanes=4, registers=32, cores=2), LLVM),
    **({feature: x86(feature) for feature in X86} if IS_X86 else {}),
}


@pytest.fixture(params=CPUS)
def cpu(request) -> CpuTarget:
    feature = request.param
    if feature in X86 and not tvm.target.codegen.target_has_features(feature, LLVM):
        pytest.skip(f"this machine has no {feature}")
    return CPUS[feature]


ZERO = 7


def convolution(x, weight, *vectors: te.Tensor, **options) -> te.Tensor:
    return quantized.requantize(quantized.quantized_conv2d(x, weight, **options), *vectors, zero=ZERO)


def depthwise(x, weight, *vectors: te.Tensor, **options) -> te.Tensor:
    return quantized.requantize(quantized.quantized_depthwise(x, weight, **options), *vectors, zero=ZERO)


def with_residual(x, weight, bias, before, factor, other, *, residual, **options) -> te.Tensor:
    sums = quantized.quantized_conv2d(x, weight, **options)
    return quantized.requantize_sum(sums, bias, before, factor, other, **residual)


def sums_of(x: np.ndarray, weight: np.ndarray, stride: int, padding: int, zero: int) -> np.ndarray:
    """The sums of a convolution, tap by tap in int64."""
    x = np.pad(x.astype("int64"), ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=zero)
    taps, _, per_group, columns = weight.shape
    rows = (x.shape[1] - taps) // stride + 1
    total = np.zeros((len(x), rows, rows, columns), "int64")
    for r in range(taps):
        for s in range(taps):
            part = x[:, r : r + stride * (rows - 1) + 1 : stride, s : s + stride * (rows - 1) + 1 : stride]
            tap = weight[r, s].astype("int64")
            total += part * tap[0] if per_group == 1 else np.einsum("nhwi,io->nhwo", part, tap)
    return total


def random_layer(channels: int, columns: int, taps: int, depthwise: bool, size: int = 9) -> tuple[np.ndarray, ...]:
    """Input, weight and vectors of a layer, in which the largest bytes are frequent."""
    rng = np.random.default_rng(channels)
    x = rng.choice(np.array([0, 1, 128, 254, 255], "uint8"), (2, size, size, channels))
    weight = rng.choice(np.array([-127, -1, 0, 126, 127], "int8"), (taps, taps, 1 if depthwise else channels, columns))
    bias = rng.integers(-5000, 5000, columns).astype("int32")
    before = rng.integers(0, 8, columns).astype("int32")
    factor = rng.integers(300, 2**12, columns).astype("int16")
    return x, weight, bias, before, factor


def rescaled(sums: np.ndarray, bias: np.ndarray, before: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Sums in 16 bits, in int64, of which some are too large for them."""
    shifted = (sums + bias.astype("int64")) >> before
    assert (np.abs(shifted) > 2**15).any()
    return (np.clip(shifted, -(2**15), 2**15 - 1) * factor.astype("int64") + 2**14) >> 15


def is_equal(ours: np.ndarray, expected: np.ndarray) -> None:
    assert len(np.unique(ours)) > 20
    np.testing.assert_array_equal(ours, np.clip(expected, 0, 255))


@pytest.mark.parametrize(
    ("channels", "columns", "taps", "stride", "depthwise"),
    [(16, 32, 1, 1, False), (4, 16, 3, 2, False), (24, 24, 3, 1, True), (12, 20, 1, 1, False), (64, 48, 1, 1, False)],
)
def test_convolutions_are_numpys_integers(cpu, channels, columns, taps, stride, depthwise) -> None:
    x, weight, *vectors = random_layer(channels, columns, taps, depthwise)
    geometry = {"strides": (stride, stride), "padding": (taps // 2,) * 4, "dilation": (1, 1), "zero": 7}
    ours = run(convolution, x, weight if depthwise else packed(weight), *vectors, target=cpu, **geometry)
    is_equal(ours, rescaled(sums_of(x, weight, stride, taps // 2, 7), *vectors) + ZERO)
    if channels == quantized.WORD:
        of_words = run(convolution, x.view("int32"), packed(weight), *vectors, target=cpu, **geometry)
        np.testing.assert_array_equal(of_words, ours)


@pytest.mark.parametrize(
    ("channels", "taps", "stride", "size", "padding"),
    [(32, 3, 1, 12, 1), (48, 5, 1, 8, 2), (16, 7, 2, 13, 3), (20, 3, 2, 12, 1), (64, 3, 1, 9, 1), (16, 3, 1, 10, 0)],
)
def test_depthwise_layers_by_words_of_taps_are_numpys_integers(cpu, channels, taps, stride, size, padding) -> None:
    x, weight, *vectors = random_layer(channels, channels, taps, True, size)
    columns = (size + 2 * padding - taps) // stride + 1
    words = taps_packed(weight, *quantized.taps_in_words(taps, stride, columns), stride)
    geometry = {"strides": (stride, stride), "padding": (padding,) * 4, "taps": taps, "zero": 7}
    ours = run(depthwise, x, words, *vectors, target=cpu, **geometry)
    is_equal(ours, rescaled(sums_of(x, weight, stride, padding, 7), *vectors) + ZERO)


def test_a_residual_is_added_before_the_last_shift(cpu) -> None:
    x, weight, *vectors = random_layer(16, 64, 1, False)
    other = np.random.default_rng(1).integers(0, 256, (2, 9, 9, 64)).astype("uint8")
    residual = {"other_factor": 3000, "constant": -900, "bits": 4}
    geometry = {"strides": (1, 1), "padding": (0,) * 4, "dilation": (1, 1), "zero": 0}
    ours = run(with_residual, x, packed(weight), *vectors, other, target=cpu, residual=residual, **geometry)
    summand = (128 * other.astype("int64") * 3000 + 2**14) >> 15
    is_equal(ours, (rescaled(sums_of(x, weight, 1, 0, 0), *vectors) + summand - 900) >> 4)


def test_matrix_products_are_numpys_integers(cpu) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 256, (6, 40)).astype("uint8"), rng.integers(-127, 128, (40, 48)).astype("int8")
    ours = run(quantized.quantized_matmul, x, packed(weight), target=cpu)
    np.testing.assert_array_equal(ours, x.astype("int64") @ weight)


ODD = [(2, 7, 5, 20), (1, 3, 1, 64), (3, 5, 12), (2, 2, 2, 4), (1, 9, 9, 160)]
"""Shapes of what is summed over all axes between the first and the last."""


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("keepdims", [False, True])
def test_sums_of_pixels_are_numpys_integers(cpu, shape, keepdims) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape).astype("uint8")
    x[0] = 255
    ours = run(quantized.quantized_sum, x, target=cpu, keepdims=keepdims)
    expected = x.sum(tuple(range(1, len(shape) - 1)), dtype="int64", keepdims=keepdims)
    np.testing.assert_array_equal(ours, expected)


def test_quantising_rounds_to_even_clips_and_pads(cpu) -> None:
    x = np.array([[-9.0, -0.5, 0.5], [1.5, 0.26, 400.0]], "float32")
    q = run(quantized.quantize, x, target=cpu, inverse=1.0, zero=3, channels=4)
    np.testing.assert_array_equal(q, [[0, 3, 3, 3], [5, 3, 255, 3]])
    words = run(quantized.quantize_words, x, target=cpu, inverse=1.0, zero=3)
    np.testing.assert_array_equal(words.view("uint8"), q)
    back = run(quantized.dequantize, q, target=cpu, scale=0.5, zero=3)
    np.testing.assert_array_equal(back, (q.astype("float32") - 3) * 0.5)


@pytest.mark.skipif(not IS_X86, reason="x86's instructions")
@pytest.mark.parametrize(("feature", "instruction"), [("avx512vnni", "vpdpbusd"), ("avx2", "vpmaddwd")])
def test_dot_products_are_instructions_that_do_not_saturate(feature, instruction) -> None:
    x, weight, *vectors = random_layer(16, 32, 1, False)
    geometry = {"strides": (1, 1), "padding": (0,) * 4, "dilation": (1, 1), "zero": 0}
    target = x86(feature)
    func = target.schedule(defined(convolution, x, packed(weight), *vectors, **geometry))
    mod = target.lower(func.with_attr("global_symbol", "kernel"))
    text = tvm.get_global_func("target.build.llvm")(mod, target.llvm).inspect_source("asm")
    assert re.search(rf"\b{instruction}\b", text)
    assert "pmaddubsw" not in text
    assert not re.search(r"\bvpdpbusds\b", text)
