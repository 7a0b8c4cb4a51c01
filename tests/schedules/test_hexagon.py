"""Products in eight bits by HVX's instructions, under qemu-hexagon: NumPy's integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm

from relay_passes.analysis.fixed_point import packed, taps_packed
from schedules.kernels import PORTABLE, quantized
from tests.schedules import hexagon
from tests.schedules import test_quantized as layers
from tests.schedules.kernels import defined
from tests.schedules.test_quantized import ZERO, convolution, is_equal, random_layer, rescaled, sums_of

VERSIONS = ("v66", "v73")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("channels", "columns", "taps", "stride", "depthwise"),
    [(16, 64, 1, 1, False), (12, 24, 3, 2, False), (8, 7, 1, 1, False), (32, 32, 3, 1, True)],
)
def test_convolutions_are_numpys_integers(
    version: str, channels: int, columns: int, taps: int, stride: int, depthwise: bool, tmp_path: Path
) -> None:
    x, weight, *vectors = random_layer(channels, columns, taps, depthwise, 7)
    geometry = {"strides": (stride, stride), "padding": (taps // 2,) * 4, "dilation": (1, 1), "zero": 7}
    arrays = [x, weight if depthwise else packed(weight), *vectors]
    ours = hexagon.run(defined(convolution, *arrays, **geometry), arrays, tmp_path, version)
    is_equal(ours, rescaled(sums_of(x, weight, stride, taps // 2, 7), *vectors) + ZERO)


@pytest.mark.parametrize("version", VERSIONS)
def test_depthwise_layers_by_words_of_taps(version: str, tmp_path: Path) -> None:
    x, weight, *vectors = random_layer(48, 48, 3, True, 8)
    words = taps_packed(weight, *quantized.taps_in_words(3, 1, 8), 1)
    geometry = {"strides": (1, 1), "padding": (1,) * 4, "taps": 3, "zero": 7}
    arrays = [x, words, *vectors]
    ours = hexagon.run(defined(layers.depthwise, *arrays, **geometry), arrays, tmp_path, version)
    is_equal(ours, rescaled(sums_of(x, weight, 1, 1, 7), *vectors) + ZERO)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("columns", [16, 64])
def test_residuals(version: str, columns: int, tmp_path: Path) -> None:
    """Bytes of a residual are widened in the order of sums that are packed, of whole vectors and of halves."""
    x, weight, *vectors = random_layer(16, columns, 1, False, 8)
    other = np.random.default_rng(1).integers(0, 256, (2, 8, 8, columns)).astype("uint8")
    geometry = {"strides": (1, 1), "padding": (0,) * 4, "dilation": (1, 1), "zero": 0}
    residual = {"other_factor": 3000, "constant": -900, "bits": 4}
    arrays = [x, packed(weight), *vectors, other]
    func = defined(layers.with_residual, *arrays, residual=residual, **geometry)
    ours = hexagon.run(func, arrays, tmp_path, version)
    summand = (128 * other.astype("int64") * 3000 + 2**14) >> 15
    is_equal(ours, (rescaled(sums_of(x, weight, 1, 0, 0), *vectors) + summand - 900) >> 4)


def dequantized(x, weight, bias, scale):
    return quantized.dequantize_sums(quantized.quantized_matmul(x, weight), bias, scale)


@pytest.mark.parametrize("version", VERSIONS)
def test_products_that_end_in_floats(version: str, tmp_path: Path) -> None:
    """Sums of vectors, and floats one by one: no emulator has vectors of floats."""
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 256, (6, 40)).astype("uint8"), rng.integers(-127, 128, (40, 96)).astype("int8")
    bias, scale = rng.integers(-99, 99, 96).astype("int32"), rng.random(96).astype("float32")
    arrays = [x, packed(weight), bias, scale]
    ours = hexagon.run(defined(dequantized, *arrays), arrays, tmp_path, version)
    np.testing.assert_array_equal(ours, (x.astype("int32") @ weight + bias).astype("float32") * scale)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [(2, 7, 5, 20), (1, 4, 4, 96), (2, 3, 4)])
def test_sums_of_pixels(version: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape).astype("uint8")
    x[0] = 255
    ours = hexagon.run(defined(quantized.quantized_sum, x, keepdims=True), [x], tmp_path, version)
    np.testing.assert_array_equal(ours, x.sum(tuple(range(1, len(shape) - 1)), dtype="int64", keepdims=True))


def test_dot_products_are_instructions_on_words() -> None:
    """Words of pixels are loaded at once, results are stored as vectors. Source code names no instructions."""
    x, weight, *vectors = random_layer(96, 64, 1, False)
    geometry = {"strides": (1, 1), "padding": (0,) * 4, "dilation": (1, 1), "zero": 0}
    target = hexagon.hexagon("v73")
    func = target.schedule(defined(convolution, x, packed(weight), *vectors, **geometry))
    func = func.with_attr("global_symbol", "kernel")
    text = tvm.get_global_func("target.build.llvm")(target.lower(func), target.llvm).inspect_source("asm")
    assert "vrmpy(" in text and "vmpy(" in text and ":sat" in text and "vmin(" not in text
    assert "memub" not in text and "memb(" not in text, "bytes are moved one by one"
    assert "llvm_pure_intrin" not in str(target.lower(func.with_attr(PORTABLE, True)))
