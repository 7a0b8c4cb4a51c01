"""Products in eight bits: the same integers on every target, and NumPy's."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from tvm import te
from tvm.target import Target

from relay_passes.analysis.fixed_point import packed
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


def convolution(
    x: te.Tensor, weight: te.Tensor, bias: te.Tensor, before: te.Tensor, factor: te.Tensor, rounding: te.Tensor,
    after: te.Tensor, **options,
) -> te.Tensor:  # fmt: skip
    sums = quantized.quantized_conv2d(x, weight, **options)
    return quantized.requantize(sums, bias, before, factor, rounding, after)


def with_residual(x, weight, bias, before, factor, rounding, after, other, *, residual, **options) -> te.Tensor:
    sums = quantized.quantized_conv2d(x, weight, **options)
    return quantized.requantize_sum(sums, bias, before, factor, rounding, after, other, **residual)


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
    before, after = (rng.integers(low, high, columns).astype("int32") for low, high in ((0, 5), (14, 20)))
    factor = rng.integers(64, 512, columns).astype("int32")
    return x, weight, bias, before, factor, ((1 << (after - 1)) + (7 << after)).astype("int32"), after


@pytest.mark.parametrize(
    ("channels", "columns", "taps", "stride", "depthwise"),
    [(16, 32, 1, 1, False), (4, 16, 3, 2, False), (24, 24, 3, 1, True), (12, 20, 1, 1, False)],
)
def test_convolutions_are_numpys_integers(cpu, channels, columns, taps, stride, depthwise) -> None:
    x, weight, *vectors = random_layer(channels, columns, taps, depthwise)
    geometry = {"strides": (stride, stride), "padding": (taps // 2,) * 4, "dilation": (1, 1), "zero": 7}
    ours = run(convolution, x, weight if depthwise else packed(weight), *vectors, target=cpu, **geometry)
    bias, before, factor, rounding, after = (each.astype("int64") for each in vectors)
    sums = sums_of(x, weight, stride, taps // 2, 7)
    wide = (((sums + bias) >> before) * factor + rounding) >> after
    assert np.abs(((sums + bias) >> before) * factor + rounding).max() < 2**31
    assert len(np.unique(ours)) > 20
    np.testing.assert_array_equal(ours, np.clip(wide, 0, 255))
    if channels == quantized.WORD:
        of_words = run(convolution, x.view("int32"), packed(weight), *vectors, target=cpu, **geometry)
        np.testing.assert_array_equal(of_words, ours)


def test_a_residual_is_added_before_the_last_shift(cpu) -> None:
    x, weight, *vectors = random_layer(16, 16, 1, False)
    other = np.random.default_rng(1).integers(0, 256, (2, 9, 9, 16)).astype("uint8")
    residual = {"other_factor": 37, "constant": 900, "bits": 6}
    geometry = {"strides": (1, 1), "padding": (0,) * 4, "dilation": (1, 1), "zero": 0}
    ours = run(with_residual, x, packed(weight), *vectors, other, target=cpu, residual=residual, **geometry)
    bias, before, factor, rounding, after = (each.astype("int64") for each in vectors)
    own = (((sums_of(x, weight, 1, 0, 0) + bias) >> before) * factor + rounding) >> after
    np.testing.assert_array_equal(ours, np.clip((own + other.astype("int64") * 37 + 900) >> 6, 0, 255))


def test_matrix_products_are_numpys_integers(cpu) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 256, (6, 40)).astype("uint8"), rng.integers(-127, 128, (40, 48)).astype("int8")
    ours = run(quantized.quantized_matmul, x, packed(weight), target=cpu)
    np.testing.assert_array_equal(ours, x.astype("int64") @ weight)


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
