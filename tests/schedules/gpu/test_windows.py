"""Pooling and other short reductions on GPUs, against PyTorch in double precision, and on the host for CUDA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from tvm import te, tirx, topi

from pock_tvm.compiler.targets import resolve_target
from schedules.decisions import Option
from schedules.gpu import gpu_target
from schedules.kernels import pooling
from schedules.kernels.reduction import channel_sum, largest, smallest
from tests.schedules.gpu import cuda_on_host
from tests.schedules.gpu.test_matrix import ORIN, short
from tests.schedules.kernels import TARGETS, assert_close, call, defined, noise

GPUS = {"opencl": TARGETS["opencl"], "webgpu": TARGETS["webgpu"]}


@dataclass(frozen=True)
class Pool:
    """Images and windows."""

    shape: tuple[int, int, int, int]
    size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    @property
    def window(self) -> dict[str, Any]:
        return {"pool_size": self.size, "strides": self.strides, "padding": self.padding * 2, "dilation": self.dilation}

    @property
    def options(self) -> dict[str, Any]:
        return {"kernel_size": self.size, "stride": self.strides, "padding": self.padding}

    def images(self) -> np.ndarray:
        (x,) = noise(str(self), self.shape)
        return np.round(x * 2) / 2  # ties

    def torch(self) -> torch.Tensor:
        return torch.tensor(self.images().astype("float64").transpose(0, 3, 1, 2), requires_grad=True)


POOLS = {
    "whole vectors": Pool((2, 9, 7, 8)),
    "three channels": Pool((1, 9, 9, 3)),
    "two by two": Pool((3, 8, 6, 6), (2, 2), (2, 2), (0, 0)),
    "overlapping": Pool((1, 6, 5, 4), (3, 2), (1, 1), (1, 0)),
    "wide": Pool((2, 33, 33, 5), (7, 7), (3, 3), (3, 3)),
    "one channel": Pool((2, 13, 11, 1)),
}
DILATED = Pool((1, 11, 9, 4), (3, 3), (2, 1), (1, 1), (2, 3))


def last(y: torch.Tensor) -> np.ndarray:
    return y.detach().numpy().transpose(0, 2, 3, 1)


def scheduled(func: tirx.PrimFunc, target: Any, **decisions: Option) -> tirx.PrimFunc:
    """The schedule of a short reduction, not the fallback's."""
    assert set(target.options(func)) == {"lanes", "threads"}
    return target.schedule(func, decisions)


def check_max(pool: Pool, target: Any, **decisions: Option) -> None:
    """Maximum, its place, and gradient."""
    x, y = pool.images(), F.max_pool2d(pool_x := pool.torch(), **pool.options, dilation=pool.dilation)
    out = tuple(y.shape[2:])
    func = defined(pooling.max_pool2d, x, **pool.window, out_size=out)
    np.testing.assert_array_equal(call(scheduled(func, target, **decisions), x, target=target), last(y))
    places = call(
        scheduled(defined(pooling.max_pool2d_argmax, x, **pool.window, out_size=out), target, **decisions),
        x,
        target=target,
    )
    (grad,) = noise("grad", places.shape)
    y.backward(torch.from_numpy(grad.astype("float64").transpose(0, 3, 1, 2)))
    func = defined(pooling.max_pool2d_gradient, places, grad, **pool.window, size=pool.shape[1:3])
    assert_close(call(scheduled(func, target, **decisions), places, grad, target=target), last(pool_x.grad))


def check_average(pool: Pool, target: Any, *, include: bool, **decisions: Option) -> None:
    """Average and its gradient."""
    x, y = pool.images(), F.avg_pool2d(pool_x := pool.torch(), **pool.options, count_include_pad=include)

    def average(x: te.Tensor) -> te.Tensor:
        padding = (*pool.padding, *pool.padding)
        return topi.nn.pool2d(
            x, pool.size, pool.strides, (1, 1), padding, "avg", layout="NHWC", count_include_pad=include
        )

    func = defined(average, x)
    assert_close(call(scheduled(func, target, **decisions), x, target=target), last(y))
    (grad,) = noise("grad", last(y).shape)
    y.backward(torch.from_numpy(grad.astype("float64").transpose(0, 3, 1, 2)))
    options = {**pool.window, "count_include_pad": include, "size": pool.shape[1:3]}
    func = defined(pooling.avg_pool2d_gradient, grad, **options)
    assert_close(call(scheduled(func, target, **decisions), grad, target=target), last(pool_x.grad))


TRIED = [*(("opencl", name) for name in POOLS), ("webgpu", "whole vectors"), ("webgpu", "three channels")]


@pytest.mark.parametrize(("name", "pool"), TRIED)
def test_numbers(name: str, pool: str) -> None:
    check_max(POOLS[pool], GPUS[name])
    check_average(POOLS[pool], GPUS[name], include=pool == "overlapping")


def test_dilated() -> None:
    check_max(DILATED, GPUS["opencl"])


@pytest.mark.parametrize("decisions", [{"lanes": 2, "threads": 64}, {"lanes": 1, "threads": 128}], ids=str)
def test_decisions(decisions: dict[str, Option]) -> None:
    check_max(POOLS["whole vectors"], GPUS["opencl"], **decisions)
    check_average(POOLS["whole vectors"], GPUS["opencl"], include=False, **decisions)


def test_nan_and_infinity() -> None:
    """A NaN is the maximum of its windows and of no others; a window of -inf has that."""
    pool = POOLS["whole vectors"]
    x = pool.images()
    x[0, 2, 3, 1], x[1, :4, :4, 2], x[0, 5, 5, 7] = np.nan, -np.inf, np.inf
    y = F.max_pool2d(torch.from_numpy(x.transpose(0, 3, 1, 2)), **pool.options)
    func = defined(pooling.max_pool2d, x, **pool.window, out_size=tuple(y.shape[2:]))
    np.testing.assert_array_equal(call(scheduled(func, GPUS["opencl"]), x, target=GPUS["opencl"]), last(y))


def test_what_is_around_is_fused() -> None:
    """A sum of squares over images, then its root."""
    (x,) = noise("around", (3, 5, 72))

    def kernel(x: te.Tensor) -> te.Tensor:
        squares = te.compute(x.shape, lambda *at: x(*at) * x(*at), name="squares")
        sums = channel_sum(squares, chunks=())
        return te.compute(sums.shape, lambda *at: tirx.sqrt(sums(*at)), name="lengths")

    target = GPUS["opencl"]
    found = call(scheduled(defined(kernel, x), target), x, target=target)
    assert_close(found, np.sqrt((x.astype("float64") ** 2).sum((0, 1))))


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("kernel", [largest, smallest], ids=["largest", "smallest"])
def test_threads_share_long_extrema(kernel: Any, name: str) -> None:
    """NaN propagates, wherever it is."""
    (x,) = noise("long", (3, 700))
    x[1, 650], x[2] = np.nan, -np.inf
    func = defined(kernel, x, axes=[1], keepdims=False)
    options = GPUS[name].options(func)
    assert options[f"{kernel.__name__}.together"].default > 1
    expected = x.max(1) if kernel is largest else x.min(1)
    np.testing.assert_array_equal(call(GPUS[name].schedule(func), x, target=GPUS[name]), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda(dtype: str, tmp_path: Path) -> None:
    """Vectors of 16 bytes, or of four elements of 16 bits, run on the host."""
    pool = POOLS["whole vectors"]
    x = short(pool.images(), dtype)
    out = (5, 4)
    func = scheduled(defined(pooling.max_pool2d, x, **pool.window, out_size=out), ORIN)
    result = np.zeros((2, *out, 8), x.dtype)
    cuda_on_host.run(func, ORIN, [x, result], tmp_path)
    np.testing.assert_array_equal(result.astype("float64"), last(F.max_pool2d(pool.torch(), **pool.options)))


@pytest.mark.parametrize("name", ["cuda", "metal", "opencl", "webgpu"])
def test_long_reductions_are_shared(name: str) -> None:
    """A global average has few results of many terms; a row's terms are adjacent: other schedules suit them."""
    target = gpu_target(resolve_target("jetson-orin" if name == "cuda" else name))
    (image, matrix) = noise("long", (1, 14, 14, 64), (33, 7))
    for func in (
        defined(channel_sum, image, chunks=(1,)),
        defined(largest, matrix, axes=[1], keepdims=False),
    ):
        assert "lanes" not in target.options(func)
