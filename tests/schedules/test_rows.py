"""Normalisation, softmax, cross-entropy and sums over rows, against NumPy in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from tvm import te, tirx, topi

from schedules.cpu import CpuTarget
from schedules.kernels.functions import softmax
from schedules.kernels.loss import cross_entropy, cross_entropy_gradient
from schedules.kernels.normalization import normalize, normalize_gradient
from schedules.kernels.reduction import channel_sum
from schedules.target import Target
from tests.schedules.kernels import (
    TARGETS,
    assert_close,
    call,
    defined,
    doubles,
    is_cpu,
    is_one_nest,
    noise,
    run,
    scheduled,
    traces,
)

Shape = tuple[int, ...]
IGNORED = -100


# ---- normalisation ---------------------------------------------------------------------------------------------------


def statistics(x: np.ndarray, axes: Sequence[int], epsilon: float, center: bool) -> tuple[np.ndarray, np.ndarray]:
    """X without its mean, and one over its spread."""
    centered = x - x.mean(tuple(axes), keepdims=True) if center else x
    return centered, 1 / np.sqrt((centered**2).mean(tuple(axes), keepdims=True) + epsilon)


def normalize_reference(x: np.ndarray, **options: Any) -> np.ndarray:
    centered, scale = statistics(x, **options)
    return centered * scale


def normalize_gradient_reference(x: np.ndarray, grad: np.ndarray, **options: Any) -> np.ndarray:
    """The chain rule, step by step backwards."""
    axes, center = tuple(options["axes"]), options["center"]
    centered, scale = statistics(x, **options)
    d_scale = (grad * centered).sum(axes, keepdims=True)
    d_variance = d_scale * -0.5 * scale**3
    d_centered = grad * scale + d_variance * 2 * centered / np.prod([x.shape[axis] for axis in axes])
    return d_centered - d_centered.mean(axes, keepdims=True) if center else d_centered


NORMALIZED: list[tuple[Shape, tuple[int, ...]]] = [
    ((5, 1), (1,)),
    ((1, 3), (1,)),
    ((3, 7), (1,)),
    ((7, 17), (1,)),
    ((4, 24), (1,)),
    ((2, 5, 33), (2,)),
    ((3, 4, 64), (2,)),
    ((33, 768), (1,)),  # parallel over rows, vectors of sums
    ((3, 5, 17), (1, 2)),
    ((2, 7, 7, 24), (1, 2)),  # instance norm
    ((2, 5, 4, 3, 8), (1, 2, 4)),  # group norm
    ((3, 4, 5, 33), (0, 1, 2)),  # batch norm
    ((17, 24), (0,)),
]


@pytest.mark.parametrize("center", [True, False], ids=["around the mean", "around zero"])
@pytest.mark.parametrize(("shape", "axes"), NORMALIZED, ids=str)
def test_normalize(shape: Shape, axes: tuple[int, ...], center: bool, target: Target) -> None:
    x, grad = noise("normalize", shape, shape)
    x += 0.5
    options: dict[str, Any] = {"axes": list(axes), "epsilon": 1e-5, "center": center}
    forward = scheduled(normalize, x, target=target, **options)
    backward = scheduled(normalize_gradient, x, grad, target=target, **options)
    rows_are_contiguous = axes == tuple(range(len(shape)))[-len(axes) :] and len(axes) < len(shape)
    assert not is_cpu(target) or is_one_nest(forward) == is_one_nest(backward) == rows_are_contiguous
    assert_close(call(forward, x, target=target), normalize_reference(*doubles(x), **options))
    gradient = normalize_gradient_reference(*doubles(x, grad), **options)
    largest_term = np.abs(grad).max() * statistics(*doubles(x), **options)[1].max()  # the terms of short rows cancel
    np.testing.assert_allclose(call(backward, x, grad, target=target), gradient, rtol=1e-5, atol=1e-5 * largest_term)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    (x,) = noise("mean", (4, 96))
    x += 1000
    options: dict[str, Any] = {"axes": [1], "epsilon": 1e-5, "center": True}
    np.testing.assert_allclose(
        run(normalize, x, **options), normalize_reference(*doubles(x), **options), rtol=1e-3, atol=1e-3
    )


# ---- softmax ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 1), (1, 3), (3, 7), (17, 17), (24, 24), (2, 3, 5, 33), (4, 2, 64, 128), (3, 197), (2, 1000)], ids=str)  # fmt: skip
def test_softmax(shape: Shape, target: Target) -> None:
    (x,) = noise("softmax", shape)
    x *= 5
    func = scheduled(softmax, x, target=target)
    assert not is_cpu(target) or is_one_nest(func)
    result = call(func, x, target=target)
    np.testing.assert_allclose(
        result, special.softmax(*doubles(x), axis=-1), rtol=3e-6
    )  # of x - max the last bit counts


@pytest.mark.parametrize("shape", [(5, 1), (3, 7), (2, 3, 5, 33), (4, 197)], ids=str)
def test_softmax_gradient(shape: Shape, cpu: CpuTarget) -> None:
    """Its sums keep the axis that they are over."""

    def kernel(y: te.Tensor, grad: te.Tensor) -> te.Tensor:
        along = topi.sum(topi.multiply(grad, y), axis=-1, keepdims=True)
        return topi.multiply(y, topi.subtract(grad, along))

    x, grad = noise("softmax gradient", shape, shape)
    y = special.softmax(x, axis=-1)
    func = scheduled(kernel, y, grad, target=cpu)
    assert is_one_nest(func)
    y64, grad64 = doubles(y, grad)
    assert_close(call(func, y, grad, target=cpu), y64 * (grad64 - (grad64 * y64).sum(-1, keepdims=True)))


def test_rows_of_a_reduction_alone(cpu: CpuTarget) -> None:
    """Sums, and extrema that start at -inf, of rows of any length; and what stays a reduction across rows."""
    for length in (1, 3, 17, 33, 197):
        (x,) = noise("alone", (7, length))
        for kernel, reference in ((topi.sum, np.sum), (topi.max, np.max), (topi.min, np.min)):
            func = scheduled(kernel, x, axis=-1, target=cpu)
            assert is_one_nest(func)
            assert_close(call(func, x, target=cpu), reference(doubles(x)[0], axis=-1))
        assert_close(run(topi.sum, x, axis=0, target=cpu), doubles(x)[0].sum(0))


def test_windows_are_no_rows(cpu: CpuTarget) -> None:
    def pairs(x: te.Tensor) -> te.Tensor:
        s = te.reduce_axis((0, 2), name="s")
        return te.compute((6, 16), lambda i, c: te.sum(x(i * 2 + s, c), axis=s), name="pairs")

    (x,) = noise("windows", (12, 16))
    assert "pairs.lanes" in cpu.options(defined(pairs, x))  # of the columns
    assert_close(run(pairs, x, target=cpu), doubles(x)[0].reshape(6, 2, 16).sum(1))


def test_rows_that_read_other_rows_are_no_rows(cpu: CpuTarget) -> None:
    def kernel(x: te.Tensor) -> te.Tensor:
        total = topi.sum(x, axis=-1, keepdims=True)
        return te.compute(x.shape, lambda i, j: x(i, j) - total(6 - i, 0), name="others")

    (x,) = noise("others", (7, 33))
    assert_close(run(kernel, x, target=cpu), doubles(x)[0] - doubles(x)[0].sum(-1, keepdims=True)[::-1])


def test_softmax_of_extremes() -> None:
    x = np.zeros((4, 24), "float32")
    x[0, 3:] = -np.inf  # masked
    x[1] = 1e30
    x[2, 5] = 1e4
    x[3, 0] = np.nan
    result = run(softmax, x)
    np.testing.assert_allclose(result[:3], special.softmax(x[:3].astype("float64"), axis=1), rtol=1e-6)
    assert np.isnan(result[3]).all()


# ---- cross-entropy ---------------------------------------------------------------------------------------------------


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - special.logsumexp(x, axis=1, keepdims=True)


def targets(labels: np.ndarray, classes: int, smoothing: float) -> np.ndarray:
    return (1 - smoothing) * np.eye(classes)[np.maximum(labels, 0)] + smoothing / classes


CLASSES = [(1, 3), (5, 1), (7, 2), (4, 7), (17, 17), (3, 24), (24, 33), (33, 1000)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", CLASSES, ids=str)
def test_cross_entropy(shape: Shape, smoothing: float, target: Target) -> None:
    rows, classes = shape
    logits, grad = noise("logits", shape, (rows,))
    logits *= 4
    labels = np.random.default_rng(rows).integers(0, classes, rows).astype("int64" if smoothing else "int32")
    labels[2::3] = IGNORED
    counts = labels != IGNORED
    options: dict[str, Any] = {"ignore_index": IGNORED, "label_smoothing": smoothing, "target": target}
    wanted = targets(labels, classes, smoothing)
    expected = -(wanted * log_softmax(*doubles(logits))).sum(1) * counts
    func = scheduled(cross_entropy, logits, labels, **options)
    assert not is_cpu(target) or is_one_nest(func)
    np.testing.assert_allclose(call(func, logits, labels, target=target), expected, rtol=2e-6, atol=1e-5)
    gradient = (special.softmax(*doubles(logits), axis=1) - wanted) * (grad * counts)[:, None]
    func = scheduled(cross_entropy_gradient, logits, labels, grad, **options)
    assert not is_cpu(target) or is_one_nest(func)
    result = call(func, logits, labels, grad, target=target)
    np.testing.assert_allclose(result, gradient, rtol=1e-5, atol=1e-6)
    assert (result[~counts] == 0).all()


def test_cross_entropy_of_extremes() -> None:
    """Neither overflows, and a label that is ignored is not read, whatever it says."""
    logits = np.array([[1e4, 0, -1e4], [-1e4, -1e4, 1e4], [1e38, -1e38, 0]], "float32")
    labels = np.array([2, 2, 1 << 40])
    options: dict[str, Any] = {"ignore_index": 1 << 40, "label_smoothing": 0.0}
    np.testing.assert_array_equal(run(cross_entropy, logits, labels, **options), [2e4, 0, 0])
    gradient = run(cross_entropy_gradient, logits, labels, np.ones(3, "float32"), **options)
    np.testing.assert_array_equal(gradient, [[1, 0, -1], [0, 0, 0], [0, 0, 0]])


# ---- sums over all but the channels ----------------------------------------------------------------------------------


SUMS: list[tuple[Shape, tuple[int, ...]]] = [
    ((1, 1), (1,)),
    ((7, 1), (7,)),
    ((8, 3), (4,)),
    ((9, 7), (1,)),
    ((12, 17), (3,)),
    ((2, 4, 5, 24), (2, 2)),
    ((1, 7, 7, 33), (1, 7)),
    ((2, 14, 14, 96), (2, 7)),
    ((3, 6, 2, 1280), (3, 1)),
    ((64, 10), (8,)),
]


@pytest.mark.parametrize(("shape", "chunks"), SUMS, ids=str)
def test_channel_sum(shape: Shape, chunks: tuple[int, ...], target: Target) -> None:
    (x,) = noise("sum", shape)
    func = scheduled(channel_sum, x, chunks=chunks, target=target)
    assert not is_cpu(target) or "local" in traces(func)
    first, second = call(func, x, target=target, times=2)
    assert_close(first, channel_sum_reference(*doubles(x), chunks))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("together", [2, 16])
@pytest.mark.parametrize(
    ("shape", "columns"), [((9, 7), 7), ((1, 7, 7, 33), 11), ((2, 5, 3, 17), 1), ((3, 6, 2, 40), 10)]
)
@pytest.mark.parametrize("name", ["opencl", "webgpu"])
def test_gpus_share_sums_of_adjacent_columns(name: str, shape: Shape, columns: int, together: int) -> None:
    """Threads side by side read side by side, in groups that fill the columns. Sums are the same every time."""
    target, (x,) = TARGETS[name], noise("shared", shape)
    chunks = (1,) * (len(shape) - 1)
    func = target.schedule(defined(channel_sum, x, chunks=chunks), {"channel_sum.together": together})
    threads = {"threadIdx.y": together, "threadIdx.x": columns} if columns > 1 else {"threadIdx.x": together}
    for axis, extent in threads.items():
        assert f'thread_binding(T.int64({extent}), thread="{axis}")' in func.script()
    first, second = call(func, x, target=target, times=2)
    assert_close(first, channel_sum_reference(*doubles(x), chunks))
    assert first.tobytes() == second.tobytes()
    x[..., 0].flat[-1] = np.nan
    np.testing.assert_array_equal(np.isnan(call(func, x, target=target)).ravel(), np.arange(shape[-1]) == 0)


def channel_sum_reference(x: np.ndarray, chunks: tuple[int, ...]) -> np.ndarray:
    parts = [size for count, extent in zip(chunks, x.shape, strict=False) for size in (count, extent // count)]
    cut = x.reshape(*parts, *x.shape[len(chunks) :])
    kept = {2 * axis for axis in range(len(chunks))} | {cut.ndim - 1}
    return cut.sum(tuple(axis for axis in range(cut.ndim) if axis not in kept))


def test_channel_sum_of_what_is_computed_on_the_way() -> None:
    """As the gradient of a bias behind a ReLU."""

    def kernel(grad: te.Tensor, y: te.Tensor) -> te.Tensor:
        zero = tirx.const(0, "float32")
        passed = te.compute(y.shape, lambda *i: tirx.Select(y(*i) > zero, grad(*i), zero), name="passed")
        scaled = te.compute(y.shape, lambda *i: passed(*i) * tirx.const(0.5, "float32"), name="scaled")
        return channel_sum(scaled, chunks=(2, 7))

    grad, y = noise("masked", (2, 14, 9, 33), (2, 14, 9, 33))
    func = scheduled(kernel, grad, y)
    assert "local" in traces(func)
    assert_close(call(func, grad, y), channel_sum_reference((y > 0) * doubles(grad)[0] / 2, (2, 7)))


# ---- random shapes ---------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    last=st.sampled_from([1, 3, 7, 16, 17, 24, 33, 48, 130]),
    over=st.integers(1, 4),
    center=st.booleans(),
    target=st.sampled_from(list(TARGETS.values())),
)
def test_any_rows(shape: list[int], last: int, over: int, center: bool, target: Target) -> None:
    shape = [*shape, last]
    axes = list(range(len(shape)))[-min(over, len(shape) - 1) :]
    x, grad = noise("any", tuple(shape), tuple(shape))
    options: dict[str, Any] = {
        "axes": axes,
        "epsilon": 0.1,
        "center": center,
    }  # rows may be short and their values close
    assert_close(run(normalize, x, target=target, **options), normalize_reference(*doubles(x), **options))
    gradient = normalize_gradient_reference(*doubles(x, grad), **options)
    result = run(normalize_gradient, x, grad, target=target, **options)
    np.testing.assert_allclose(result, gradient, rtol=1e-5, atol=1e-5 * np.abs(grad).max())
    result = run(softmax, x, target=target)
    np.testing.assert_allclose(result, special.softmax(*doubles(x), axis=-1), rtol=3e-6)
