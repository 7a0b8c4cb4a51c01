"""Layers in eight bits over planes of words: NumPy's integers, on the host and by HVX under qemu-hexagon."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import tirx

from relay_passes.analysis.fixed_point import packed, row_taps_in_words
from relay_passes.analysis.kernel_costs import kernel_costs
from schedules.cpu.vectors import lanes_of
from schedules.kernels import PORTABLE, quantized
from schedules.kernels import word_planes as W
from schedules.kernels.plane_taps import PIXELS, Window, padded_pixels
from tests.schedules import hexagon
from tests.schedules.kernels import HOST, defined, run
from tests.schedules.test_quantized import ZERO, random_layer, rescaled, sums_of


def planes(x: np.ndarray) -> np.ndarray:
    """Planes of words of bytes [N, H, W, C], with noise behind the last pixel."""
    batch, height, width, channels = x.shape
    shape = (batch, channels // 4, padded_pixels(height, width))
    found = np.random.default_rng(3).integers(-(2**31), 2**31, shape).astype("int32")
    found[..., : height * width] = x.view("<i4").reshape(batch, height * width, -1).swapaxes(1, 2)
    return found


def bytes_of(words: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bytes [N, H, W, C] of planes of words."""
    found = np.ascontiguousarray(words[..., : math.prod(size)].swapaxes(1, 2))
    return found.view("uint8").reshape(len(words), *size, -1)


# channels, columns, taps, stride, whether depthwise, size: one pixel; no whole vectors; strides whose columns are dealt
# (rows of a vector, shorter ones, and those that end anywhere), and not; borders of every width.
LAYERS = [
    (24, 40, 1, 1, False, 8),
    (12, 8, 1, 1, False, 7),
    (4, 16, 3, 2, False, 64),
    (8, 8, 3, 1, False, 9),
    (16, 16, 3, 1, True, 8),
    (12, 12, 7, 1, True, 11),
    (8, 8, 5, 2, True, 16),
    (8, 8, 3, 2, True, 10),
    (4, 4, 3, 2, True, 14),
    (4, 4, 3, 2, False, 28),
]
Case = tuple[Callable[..., Any], list[np.ndarray], dict[str, Any], np.ndarray]


def layer(channels: int, columns: int, taps: int, stride: int, depthwise: bool, size: int) -> Case:
    """A layer, its operands and attributes, and its bytes by NumPy."""
    x, weight, *vectors = random_layer(channels, columns, taps, depthwise, size)
    zero = 0 if size == 8 else 7  # borders of zeros are masked by another instruction
    options = {
        "size": (size, size), "taps": (taps, taps), "strides": (stride, stride), "padding": (taps // 2,) * 4,
        "zero": zero, "depthwise": depthwise, "zero_of_result": ZERO,
    }  # fmt: skip
    arrays = [planes(x), row_taps_in_words(weight) if depthwise else packed(weight), *vectors]
    expected = rescaled(sums_of(x, weight, stride, taps // 2, zero), *vectors) + ZERO
    return W.planes_layer, arrays, options, np.clip(expected, 0, 255)


def with_residual() -> Case:
    x, weight, *vectors = random_layer(16, 24, 1, False, 8)
    other = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 24)).astype("uint8")
    options = {
        "size": (8, 8), "taps": (1, 1), "strides": (1, 1), "padding": (0,) * 4, "zero": 0, "depthwise": False,
        "other_factor": 3000, "constant": -900, "bits": 4,
    }  # fmt: skip
    summand = (128 * other.astype("int64") * 3000 + 2**14) >> 15
    expected = (rescaled(sums_of(x, weight, 1, 0, 0), *vectors) + summand - 900) >> 4
    return W.planes_layer_sum, [planes(x), packed(weight), *vectors, planes(other)], options, np.clip(expected, 0, 255)


def is_equal(words: np.ndarray, expected: np.ndarray) -> None:
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(bytes_of(words, expected.shape[1:3]), expected)


@pytest.mark.parametrize("case", [LAYERS[1], LAYERS[3], LAYERS[5], LAYERS[7]])
def test_layers_are_numpys_integers(case: tuple) -> None:
    kernel, arrays, options, expected = layer(*case)
    is_equal(run(kernel, *arrays, target=HOST, **options), expected)


@pytest.mark.parametrize(
    ("version", "case"), [*(("v66", case) for case in [None, *LAYERS]), *(("v73", case) for case in LAYERS[::2])]
)
def test_layers_are_numpys_integers_by_hvx(case: tuple | None, version: str, tmp_path: Path) -> None:
    kernel, arrays, options, expected = layer(*case) if case else with_residual()
    is_equal(hexagon.run(defined(kernel, *arrays, **options), arrays, tmp_path, version), expected)


def test_a_residual() -> None:
    kernel, arrays, options, expected = with_residual()
    is_equal(run(kernel, *arrays, target=HOST, **options), expected)


@pytest.mark.parametrize("channels", [3, 6, 8])
def test_floats_become_planes_as_they_become_bytes(channels: int) -> None:
    x = (np.random.default_rng(0).standard_normal((2, 5, 7, channels)) * 50).astype("float32")
    numbers = {"inverse": 1.0, "zero": 200}
    q = run(quantized.quantize, x, target=HOST, **numbers, channels=-(-channels // 4) * 4)
    words = run(W.quantize_planes, x, target=HOST, **numbers)
    np.testing.assert_array_equal(bytes_of(words, (5, 7)), q)
    np.testing.assert_array_equal(bytes_of(run(W.planes_of_bytes, q, target=HOST), (5, 7)), q)
    np.testing.assert_array_equal(run(W.bytes_of_planes, words, target=HOST, size=(5, 7)), q)
    floats = run(W.dequantize_planes, words, target=HOST, size=(5, 7), scale=0.5, zero=200)
    np.testing.assert_array_equal(floats, (q.astype("float32") - 200) * 0.5)


def test_sums_in_float() -> None:
    x, weight, *_ = random_layer(8, 6, 3, False, 5)
    options = {"size": (5, 5), "taps": (3, 3), "strides": (1, 1), "padding": (1,) * 4, "zero": 7, "depthwise": False}
    whole = np.pad(weight, [(0, 0)] * 3 + [(0, 2)])
    sums = run(W.planes_sums, planes(x), packed(whole), target=HOST, **options)
    rng = np.random.default_rng(0)
    bias, scale = rng.integers(-99, 99, 6).astype("int32"), rng.random(6).astype("float32")
    ours = run(W.dequantize_plane_sums, sums, bias, scale, target=HOST, size=(5, 5))
    np.testing.assert_array_equal(ours, (sums_of(x, weight, 1, 1, 7) + bias).astype("float32") * scale)


@pytest.mark.parametrize(("taps", "stride", "padding"), [(3, 1, 2), (1, 2, 1), (3, 2, 2), (1, 2, 0)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_windows_of_any_padding(taps: int, stride: int, padding: int, depthwise: bool) -> None:
    x, weight, *_ = random_layer(4, 4, taps, depthwise, 6)
    size = ((6 + 2 * padding - taps) // stride + 1,) * 2
    options = {
        "size": (6, 6), "taps": (taps, taps), "strides": (stride, stride), "padding": (padding,) * 4, "zero": 7,
        "depthwise": depthwise,
    }  # fmt: skip
    assert Window(6, 6, (taps, taps), (stride, stride), (padding,) * 4).fits
    sums = run(
        W.planes_sums, planes(x), row_taps_in_words(weight) if depthwise else packed(weight), target=HOST, **options
    )
    ours = np.moveaxis(sums[:, 0, :, : math.prod(size)], 1, 2).reshape(2, *size, 4)
    np.testing.assert_array_equal(ours, sums_of(x, weight, stride, padding, 7))


@pytest.mark.parametrize(
    ("case", "macs"), [(LAYERS[1], 2 * 49 * 8 * 12), (LAYERS[4], 2 * 64 * 16 * 9), (LAYERS[5], 2 * 121 * 12 * 49)]
)
def test_costs_count_pixels_and_weights_alone(case: tuple, macs: int) -> None:
    kernel, arrays, options, _ = layer(*case)
    cost = kernel_costs(tvm.IRModule({"layer": defined(kernel, *arrays, **options)}), [])["layer"]
    assert cost["flops"] == pytest.approx(2 * macs) and cost["kind"].startswith("int8 ")


def test_two_products_by_numbers_start_in_a_packet() -> None:
    """Nothing is moved byte by byte, or spread over lanes in the sums, which begin with their bias. Source code names no
    instructions."""
    kernel, arrays, options, _ = layer(24, 40, 1, 1, False, 8)
    target = hexagon.hexagon("v66")
    func = target.schedule(defined(kernel, *arrays, **options)).with_attr("global_symbol", "kernel")
    text = tvm.get_global_func("target.build.llvm")(target.lower(func), target.llvm).inspect_source("asm")
    packets = [text.count("vrmpy(", at, text.find("}", at)) for at in range(len(text)) if text.startswith("\t{", at)]
    assert packets.count(2) > packets.count(1) and max(packets) == 2
    assert ".w = vadd(" not in text and "memub" not in text and "memb(" not in text and "vinsert" not in text
    assert "llvm_pure_intrin" not in str(target.lower(func.with_attr(PORTABLE, True)))


@pytest.mark.parametrize("case", [LAYERS[4], LAYERS[6], LAYERS[7], LAYERS[9]])
def test_planes_are_copied_by_vectors(case: tuple) -> None:
    """No word is copied alone, whatever the rows, and no mask computed."""
    kernel, arrays, options, _ = layer(*case)
    target = hexagon.hexagon("v66")
    func = target.schedule(defined(kernel, *arrays, **options)).with_attr("global_symbol", "kernel")
    lanes: list[int] = []
    (lowered,) = target.lower(func).functions.values()
    tvm_ffi.structural_walk(lowered.body, (tirx.BufferStore, lambda store: lanes.append(lanes_of(store.value))))
    assert set(lanes) == {PIXELS}
    assert ("vdealvdd" in str(lowered)) == (case[3] == 2)
