"""Pooling, look-ups and what TVM's own operators compute: kernels that the fallback schedules."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from tvm import te, tirx, topi

from pock_tvm.compiler.targets import resolve_target
from schedules.cpu import CpuTarget
from schedules.gpu import gpu_target
from schedules.gpu.text.code import described
from schedules.kernels.bits import pack_bits, packed_shape, unpack_bits
from schedules.kernels.conv2d import pad_spatial
from schedules.kernels.elementwise import hardtanh
from schedules.kernels.indexing import embedding_gradient, gather_channels, index_tensor, take, take_along
from schedules.kernels.pooling import avg_pool2d_gradient, max_pool2d_argmax, max_pool2d_gradient
from schedules.kernels.reduction import argmax, argmin, largest, smallest
from schedules.kernels.resampling import resample
from schedules.target import Target
from tests.schedules.kernels import TARGETS, assert_close, call, doubles, noise, run, scheduled, traces

Shape = tuple[int, ...]


# ---- pooling ---------------------------------------------------------------------------------------------------------


def window(
    x: Shape, size: Shape, strides: Shape, padding: Shape = (0, 0, 0, 0), dilation: Shape = (1, 1), beyond: int = 0
) -> tuple[Shape, Shape, dict[str, Any]]:
    """An input, the shape of the result, and the options. ``beyond``: rows and columns more, as by ``ceil_mode``."""
    out = [
        (x[axis + 1] + padding[axis] + padding[axis + 2] - dilation[axis] * (size[axis] - 1) - 1) // strides[axis] + 1 + beyond
        for axis in (0, 1)
    ]  # fmt: skip
    options = {"pool_size": list(size), "strides": list(strides), "padding": list(padding), "dilation": list(dilation)}
    return x, (x[0], *out, x[3]), options


WINDOWS = {
    "one pixel": window((1, 1, 1, 1), (1, 1), (1, 1)),
    "2x2": window((2, 6, 8, 24), (2, 2), (2, 2)),
    "2x2, odd size": window((1, 7, 9, 3), (2, 2), (2, 2)),
    "3x3, overlapping": window((1, 7, 9, 17), (3, 3), (2, 2), (1, 1, 1, 1)),
    "3x3, common": window((1, 32, 32, 64), (3, 3), (2, 2), (1, 1, 1, 1)),
    "3x2, asymmetric": window((2, 8, 7, 33), (3, 2), (1, 2), (1, 0, 0, 1)),
    "2x2, dilation": window((1, 8, 9, 7), (2, 2), (1, 1), (0, 0, 0, 0), (2, 3)),
    "3x3, beyond": window((1, 6, 6, 7), (3, 3), (2, 2), beyond=1),
    "global": window((2, 7, 7, 33), (7, 7), (1, 1)),
    "17x16": window((1, 17, 16, 3), (17, 16), (1, 1)),  # more taps than a byte counts
}


def positions(
    shape: Shape, out: Shape, options: dict[str, Any]
) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """Each window, and its taps that lie in the image: number, row and column."""
    (high, wide), (down, across) = options["pool_size"], options["strides"]
    for h, w in itertools.product(range(out[1]), range(out[2])):
        taps = [
            (r * wide + s, h * down + r * options["dilation"][0] - options["padding"][0], w * across + s * options["dilation"][1] - options["padding"][1])
            for r, s in itertools.product(range(high), range(wide))
        ]  # fmt: skip
        yield h, w, [tap for tap in taps if 0 <= tap[1] < shape[1] and 0 <= tap[2] < shape[2]]


@pytest.mark.parametrize("name", WINDOWS)
def test_max_pool(name: str, target: Target) -> None:
    shape, out, options = WINDOWS[name]
    x, grad = noise(name, shape, out)
    x[...] = np.round(2 * x)  # many are equal: the first one counts
    chosen, expected = np.zeros(out, "int64"), np.zeros(shape)
    for h, w, taps in positions(shape, out, options):
        best = np.stack([x[:, row, column] for _, row, column in taps]).argmax(0)
        chosen[:, h, w] = np.array([tap for tap, _, _ in taps])[best]
        for at, (_, row, column) in enumerate(taps):
            expected[:, row, column] += (best == at) * grad[:, h, w]
    argmax = run(max_pool2d_argmax, x, **options, out_size=out[1:3], target=target)
    assert argmax.dtype == ("int32" if name == "17x16" else "uint8")
    np.testing.assert_array_equal(argmax, chosen)
    assert_close(run(max_pool2d_gradient, argmax, grad, **options, size=shape[1:3], target=target), expected)


@pytest.mark.parametrize("counts", [False, True], ids=["of the image", "of the padding too"])
@pytest.mark.parametrize("name", WINDOWS)
def test_average_pool_gradient(name: str, counts: bool, target: Target) -> None:
    shape, out, options = WINDOWS[name]
    (grad,) = noise(name, out)
    top, left, bottom, right = options["padding"]
    padded = (shape[0], shape[1] + top + bottom, shape[2] + left + right, shape[3])
    whole = options | {"padding": [0, 0, 0, 0]}
    inside = {(h, w): len(taps) for h, w, taps in positions(padded, out, whole)}
    expected = np.zeros(shape)
    for h, w, taps in positions(shape, out, options):
        for _, row, column in taps:
            expected[:, row, column] += grad[:, h, w].astype("float64") / (inside[h, w] if counts else len(taps))
    result = run(avg_pool2d_gradient, grad, **options, count_include_pad=counts, size=shape[1:3], target=target)
    assert_close(result, expected)


# ---- look-ups --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("columns", [1, 3, 7, 17, 24, 33, 64, 65, 130])
def test_look_ups_and_their_gradient(columns: int, dtype: str) -> None:
    (table,) = noise("table", (11, columns))
    indices = np.array([[3, -1, 0], [3, 10, -11]], dtype)
    np.testing.assert_array_equal(run(take, table, indices % 11, axis=0), table[indices])
    np.testing.assert_array_equal(run(take, table, np.array(3, dtype), axis=0), table[3])
    np.testing.assert_array_equal(run(take, table > 0, indices % 11, axis=0), table[indices] > 0)
    np.testing.assert_array_equal(run(take, table, np.array(0, dtype), axis=1), table[:, 0])
    (grad,) = noise("gradient", (6, columns))
    expected = np.zeros((11, columns))
    np.add.at(expected, indices.ravel(), grad)
    func = scheduled(embedding_gradient, indices.ravel(), grad, rows=11)
    first, second = call(func, indices.ravel(), grad, times=2)
    assert_close(first, expected)
    assert first.tobytes() == second.tobytes()


def test_reading_outside_gives_no_number() -> None:
    (x,) = noise("table", (5, 3))
    outside = np.array([[4, 5, 0], [-1, 1 << 33, -6]])
    none = np.array([[False, True, False], [True, True, True]])
    np.testing.assert_array_equal(np.isnan(run(take, x, outside, axis=0)), np.repeat(none[..., None], 3, 2))
    expected = np.where(none, np.nan, np.take_along_axis(x, np.where(none, 0, outside), 0))
    np.testing.assert_array_equal(run(take_along, x, outside, axis=0), expected)
    np.testing.assert_array_equal(run(take, (x * 9).astype("int32"), np.array([7]), axis=1), np.full((5, 1), -(2**31)))
    (grad,) = noise("gradient", (6, 2))
    rows = call(scheduled(embedding_gradient, outside.ravel(), grad, rows=5), outside.ravel(), grad)
    assert_close(rows, np.stack([grad[2], *np.zeros((3, 2)), grad[0] + grad[3]]))


def test_coordinates_outside_give_no_number() -> None:
    (x,) = noise("table", (4, 5, 3))
    rows, columns = np.array([[0], [-1], [4]]), np.array([1, -5, 5])
    result = run(lambda x, i, j: index_tensor(x, [i, j]), x, rows, columns)
    np.testing.assert_array_equal(result[:2, :2], x[rows[:2], columns[:2]])
    assert np.isnan(result[2]).all()
    assert np.isnan(result[:, 2]).all()


def test_what_was_read_of_rows_that_are_not_trained_adds_to_none() -> None:
    (grad,) = noise("gradient", (4, 5))
    indices = np.array([3, 0, 2, 3], "int32")
    func = scheduled(embedding_gradient, indices, grad, rows=3)
    assert_close(call(func, indices, grad), np.stack([grad[1], np.zeros(5), grad[2]]))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_gathered_channels(axis: int, target: Target) -> None:
    (x,) = noise("gather", (3, 7, 17, 33))
    channels = np.array([2, 0, 2, 1], "int32")
    result = run(gather_channels, x, channels, axis=axis, target=target)
    np.testing.assert_array_equal(result, x.take(channels, axis))
    np.testing.assert_array_equal(run(take, x, channels, axis=axis, target=target), x.take(channels, axis))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("terms", [2, 11])
def test_weighted_sums_along_an_axis(axis: int, terms: int, target: Target) -> None:
    x, weights = noise("resample", (3, 7, 5, 33), (6, terms))
    places = np.random.default_rng(0).integers(0, x.shape[axis], (6, terms)).astype("int32")
    places[places == 0] = -1  # no term, whatever is in X's first position
    np.moveaxis(x, axis, 0)[0] = np.inf
    result = run(resample, x, places, weights, axis=axis, target=target)
    factors = np.zeros((6, x.shape[axis]), "float32")
    np.add.at(factors, (np.arange(6)[:, None], places), np.where(places < 0, 0, weights))
    finite = np.where(np.isfinite(x), x, 0)
    assert_close(result, np.moveaxis(np.tensordot(factors, finite, (1, axis)), 0, axis))


# ---- the rest --------------------------------------------------------------------------------------------------------


def relu_of_sum(x: te.Tensor, y: te.Tensor) -> te.Tensor:
    return topi.nn.relu(topi.add(x, y))


def pooled(kind: str) -> Callable[[te.Tensor], te.Tensor]:
    return lambda x: topi.nn.pool2d(x, [3, 3], [2, 2], [1, 1], [1, 1, 1, 1], kind, layout="NHWC")


def pooled_reference(reduce: Callable[..., np.ndarray], outside: float) -> Callable[[np.ndarray], np.ndarray]:
    def reference(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=outside)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
        return reduce(windows, axis=(-1, -2))

    return reference


IMAGE = (2, 7, 9, 33)
OTHERS: dict[str, tuple[Callable[..., te.Tensor], Callable[..., np.ndarray], tuple[Shape, ...]]] = {
    "hardtanh": (lambda x: hardtanh(x, low=-0.5, high=0.7), lambda x: np.clip(x, -0.5, 0.7), (IMAGE,)),
    "broadcast sum": (relu_of_sum, lambda x, y: np.maximum(x + y, 0), (IMAGE, (9, 1))),
    "sum of scalars": (relu_of_sum, lambda x, y: np.maximum(x + y, 0), ((), ())),
    "sum of columns": (relu_of_sum, lambda x, y: np.maximum(x + y, 0), ((5, 1), (1, 17))),
    "padding": (lambda x: pad_spatial(x, (1, 0, 2, 3)), lambda x: np.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0))), (IMAGE,)),
    "mean of pixels": (lambda x: topi.divide(topi.sum(x, [1, 2]), tirx.const(63, "float32")), lambda x: x.mean((1, 2)), (IMAGE,)),
    "sum of all": (lambda x: topi.sum(x), np.sum, ((33, 24),)),
    "sum of rows": (lambda x: topi.sum(x, 1, keepdims=True), lambda x: x.sum(1, keepdims=True), ((7, 33),)),
    "sum of columns, long": (lambda x: topi.sum(x, 0), lambda x: x.sum(0), ((1200, 17),)),
    "maximum": (lambda x: topi.max(x, 1), lambda x: x.max(1), ((3, 7, 17),)),
    "log_softmax": (topi.nn.log_softmax, lambda x: special.log_softmax(x, axis=-1), ((7, 33),)),
    "softmax, inner axis": (lambda x: topi.nn.softmax(x, 1), lambda x: special.softmax(x, axis=1), ((3, 7, 17),)),
    "max_pool2d": (pooled("max"), pooled_reference(np.max, -np.inf), (IMAGE,)),
    "avg_pool2d": (pooled("avg"), pooled_reference(np.mean, 0), (IMAGE,)),
    "concatenation": (lambda *parts: topi.concatenate(parts, 1), lambda *parts: np.concatenate(parts, 1), ((3, 7), (3, 1), (3, 24))),
    "slice": (lambda x: topi.strided_slice(x, [1, 0], [3, 17], [1, 3]), lambda x: x[1:3, ::3], ((3, 17),)),
    "reshape": (lambda x: topi.reshape(x, (21, 11)), lambda x: x.reshape(21, 11), ((7, 33),)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_fallback(name: str, target: Target) -> None:
    kernel, reference, shapes = OTHERS[name]
    arrays = noise(name, *shapes)
    assert_close(run(kernel, *arrays, target=target), np.asarray(reference(*doubles(*arrays))))


@pytest.mark.parametrize("keepdims", [True, False])
def test_long_extrema_keep_nan(keepdims: bool, target: Target) -> None:
    (x,) = noise("extrema", (3, 17, 41))
    x[1, 7, 33] = np.nan
    options = {"axes": (1, 2), "keepdims": keepdims}
    rows, shape = x.reshape(3, -1), (3, 1, 1) if keepdims else (3,)
    for kernel, reference in ((largest, np.max), (smallest, np.min), (argmax, np.argmax), (argmin, np.argmin)):
        found = run(kernel, x, target=target, **options)
        np.testing.assert_array_equal(found, reference(rows, axis=1).reshape(shape), err_msg=kernel.__name__)


TRANSPOSES: list[tuple[Shape, Sequence[int]]] = [
    ((1, 1), (1, 0)),
    ((3, 7), (1, 0)),
    ((33, 17), (1, 0)),
    ((24, 1), (1, 0)),
    ((130, 144), (1, 0)),  # in squares from here on
    ((257, 129), (1, 0)),
    ((2, 33, 4, 96), (0, 2, 1, 3)),
    ((2, 24, 6, 96), (0, 2, 3, 1)),
    ((3, 3, 48, 64), (0, 1, 3, 2)),
    ((4, 33, 17, 24), (3, 2, 1, 0)),
]


@pytest.mark.parametrize(("shape", "axes"), TRANSPOSES, ids=str)
def test_transpose(shape: Shape, axes: Sequence[int], target: Target) -> None:
    (x,) = noise("transpose", shape)
    np.testing.assert_array_equal(run(topi.transpose, x, axes=axes, target=target), x.transpose(axes))


def test_large_results_run_in_parallel_and_small_ones_do_not(cpu: CpuTarget) -> None:
    for length, kinds in ((128, {"vectorized"}), (4096, {"vectorized", "parallel"})):
        x, y = noise("parallel", (24, length), (24, length))
        assert traces(scheduled(relu_of_sum, x, y, target=cpu)) == kinds


@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=4).filter(lambda shape: np.prod(shape) < 200_000),
    target=st.sampled_from(list(TARGETS.values())),
    data=st.data(),
)
def test_any_shape(shape: list[int], target: Target, data: st.DataObject) -> None:
    """A transpose, with an element-wise operator before it and a broadcast behind."""
    axes = data.draw(st.permutations(range(len(shape))))
    last = shape[axes[-1]]

    def kernel(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        return relu_of_sum(topi.transpose(topi.negative(x), axes), y)

    x, y = noise("any", tuple(shape), (last,))
    np.testing.assert_array_equal(run(kernel, x, y, target=target), np.maximum(-x.transpose(axes) + y, 0))


# ---- functions -------------------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, Any] = {
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asin": np.arcsin,
    "acos": np.arccos, "atan": np.arctan, "asinh": np.arcsinh, "atanh": np.arctanh, "exp": np.exp, "log": np.log,
    "log2": np.log2, "log10": np.log10, "nearbyint": np.round, "trunc": np.trunc,
}  # fmt: skip


def all_functions(x: te.Tensor) -> te.Tensor:
    def total(*at: Any) -> tirx.Expr:
        others = tirx.acosh(x(*at) + 1.0) + tirx.atan2(x(*at), x(*at) - 0.5)
        return sum((getattr(tirx, name)(x(*at)) for name in FUNCTIONS), others)

    return te.compute(x.shape, total)


def test_every_function_has_a_name_in_each_dialect(target: Target) -> None:
    x = np.linspace(0.05, 0.95, 300, dtype="float32")
    wide = x.astype("float64")
    expected = (
        sum(function(wide) for function in FUNCTIONS.values()) + np.arccosh(wide + 1) + np.arctan2(wide, wide - 0.5)
    )
    np.testing.assert_allclose(run(all_functions, x, target=target), expected, rtol=2e-4, atol=2e-4)


def test_metal_has_no_names_of_c() -> None:
    metal = gpu_target(resolve_target("metal"))
    func = scheduled(all_functions, np.zeros(300, "float32"), target=metal).with_attr("global_symbol", "kernel")
    text = described(metal.lower(func), metal.traits)["text"]
    assert "rint(" in text
    assert not re.search(rf"nearbyint|\b({'|'.join(FUNCTIONS)}|acosh|atan2)f\(", text)


# ---- bits ------------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.sampled_from([1, 3, 7, 8, 14, 17, 24, 33]), min_size=1, max_size=3).map(tuple),
    last=st.booleans(),
    target=st.sampled_from(list(TARGETS.values())),
)
def test_booleans_go_into_bits_and_come_back(shape: Shape, last: bool, target: Target) -> None:
    axis = len(shape) - 1 if last else 0
    (x,) = noise(f"bits {shape}", shape)
    bits = run(pack_bits, x > 0, target=target, axis=axis)
    count = packed_shape(shape, axis)[axis]
    assert count == -(-shape[axis] // 8)
    padded = np.concatenate([x > 0, np.zeros((*shape[:axis], 8 * count - shape[axis], *shape[axis + 1 :]), bool)], axis)
    parts = np.stack(np.split(padded, 8, axis), -1)
    np.testing.assert_array_equal(bits, np.packbits(parts, axis=-1, bitorder="little")[..., 0])
    np.testing.assert_array_equal(run(unpack_bits, bits, target=target, axis=axis, extent=shape[axis]), x > 0)
