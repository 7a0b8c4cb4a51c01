"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, shape_of

from .movement import permute
from .registry import Extents, Result, Site, converter, extents


@converter("max_pool2d.default", "max_pool2d_with_indices.default")
def max_pool(
    at: Site,
    x: Expr,
    kernel_size: Extents,
    stride: Extents = (),
    padding: Extents = 0,
    dilation: Extents = 1,
    ceil_mode: bool = False,
    rank: int = 2,
) -> Result:
    """Take the maximum of each window; padding never wins."""
    window = _Window.of(at, x, rank, kernel_size, stride, padding, dilation)
    y = at.emit(R.nn.max_pool2d(window.image, window.size, window.strides, window.padding, window.dilation))
    y = at.reshape(y, at.shape)
    return [y, None] if len(at.types) > 1 else y


@converter("avg_pool2d.default")
def avg_pool(
    at: Site,
    x: Expr,
    kernel_size: Extents,
    stride: Extents = (),
    padding: Extents = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    rank: int = 2,
) -> Expr:
    """Take the mean of each window. Padding counts on request, positions beyond it (``ceil_mode``) never."""
    window = _Window.of(at, x, rank, kernel_size, stride, padding, 1)
    y = _mean_of(at, window, count_include_pad, whole=divisor_override is not None)
    if divisor_override is not None:
        y = at.emit(R.multiply(y, at.cast(window.size[0] * window.size[1] / divisor_override)))
    return at.reshape(y, at.shape)


def _mean_of(at: Site, window: _Window, count_include_pad: bool, *, whole: bool) -> Expr:
    """Take the mean of each window: over the positions that it covers, or over all that it has (``whole``)."""
    y = at.emit(R.nn.avg_pool2d(window.image, window.size, window.strides, window.padding, count_include_pad=True))
    rows, columns = (window.covered(axis, count_include_pad) for axis in (0, 1))
    factors = (window.size[0] * window.size[1] / (rows[:, None] * columns[None, :])).astype(at.dtype)
    if whole or (factors == 1).all():
        return y
    return at.emit(R.multiply(y, relax.const(factors, at.dtype)))


converter("max_pool1d.default")(partial(max_pool, rank=1))
converter("avg_pool1d.default")(partial(avg_pool, rank=1))


class _Window:
    """The window of a pooling over images [N, C, H, W]."""

    def __init__(self, image: Expr, out: Sequence[int], *arguments: list[int]) -> None:
        self.image, self.out = image, out
        self.size, self.strides, self.own_padding, self.dilation = size, strides, _, _ = arguments
        extents = shape_of(image)[2:]
        spans = [(size[axis] - 1) * self.dilation[axis] + 1 for axis in (0, 1)]
        # Padding at the end covers the last window: PyTorch's ceil_mode.
        behind = [
            max(0, (out[axis] - 1) * strides[axis] + spans[axis] - extents[axis] - self.own_padding[axis])
            for axis in (0, 1)
        ]
        self.padding = [*self.own_padding, *behind]

    @classmethod
    def of(
        cls, at: Site, x: Expr, rank: int, size: Extents, stride: Extents, padding: Extents, dilation: Extents
    ) -> _Window:
        """Build the window of PyTorch's arguments; a row is an image of height 1, an image a batch of one."""
        sizes = extents(size, rank)
        values = [sizes, extents(stride, rank) if stride not in ((), []) else sizes]
        values += [extents(padding, rank), extents(dilation, rank)]
        shape = shape_of(x)
        out = at.shape[-rank:]
        if rank == 1:
            values = [[neutral, *value] for neutral, value in zip((1, 1, 0, 1), values, strict=True)]
            shape, out = (*shape[:-1], 1, shape[-1]), (1, *out)
        image = at.reshape(x, shape if len(shape) == 4 else (1,) * (4 - len(shape)) + shape)
        return cls(image, out, *values)

    def covered(self, axis: int, with_padding: bool) -> np.ndarray:
        """Count the positions that each window covers along an axis."""
        extent, pad = shape_of(self.image)[2 + axis], self.own_padding[axis]
        starts = np.arange(self.out[axis]) * self.strides[axis] - pad
        first, last = (-pad, extent + pad) if with_padding else (0, extent)
        return np.minimum(starts + self.size[axis], last) - np.maximum(starts, first)


@converter("max_pool3d.default", "max_pool3d_with_indices.default")
def max_pool_of_volumes(
    at: Site,
    x: Expr,
    kernel_size: Extents,
    stride: Extents = (),
    padding: Extents = 0,
    dilation: Extents = 1,
    ceil_mode: bool = False,
) -> Result:
    """Take the maximum over each plane's windows, then over depth: the first of ties is PyTorch's."""

    def pooled(window: _Window) -> Expr:
        return at.emit(R.nn.max_pool2d(window.image, window.size, window.strides, window.padding, window.dilation))

    y = _of_volumes(at, x, pooled, kernel_size, stride, padding, dilation)
    return [y, None] if len(at.types) > 1 else y


@converter("avg_pool3d.default")
def avg_pool_of_volumes(
    at: Site,
    x: Expr,
    kernel_size: Extents,
    stride: Extents = (),
    padding: Extents = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Expr:
    """Take the mean over each plane's windows, then over depth."""

    def pooled(window: _Window) -> Expr:
        return _mean_of(at, window, count_include_pad, whole=divisor_override is not None)

    y = _of_volumes(at, x, pooled, kernel_size, stride, padding, 1)
    if divisor_override is None:
        return y
    return at.emit(R.multiply(y, at.cast(math.prod(extents(kernel_size, 3)) / divisor_override)))


def _of_volumes(
    at: Site,
    x: Expr,
    pooled: Callable[[_Window], Expr],
    size: Extents,
    stride: Extents,
    padding: Extents,
    dilation: Extents,
) -> Expr:
    """Pool volumes [(N,) C, D, H, W]: planes first, then depth, as rows of images."""
    sizes = extents(size, 3)
    values = [sizes, extents(stride, 3) if stride not in ((), []) else sizes, extents(padding, 3), extents(dilation, 3)]
    *leading, depth, height, width = shape_of(x)
    images, out = math.prod(leading), at.shape[-3:]
    planes = at.reshape(x, (1, images * depth, height, width))
    flat = pooled(_Window(planes, out[1:], *(value[1:] for value in values)))
    rows = at.reshape(flat, (1, images, depth, out[1] * out[2]))
    neutral = [[value[0], other] for value, other in zip(values, (1, 1, 0, 1), strict=True)]
    return at.reshape(pooled(_Window(rows, (out[0], out[1] * out[2]), *neutral)), at.shape)


@converter("_adaptive_avg_pool3d.default", "adaptive_avg_pool3d.default")
def adaptive_avg_pool_of_volumes(at: Site, x: Expr, output_size: Sequence[int]) -> Expr:
    """Take means over ``output_size`` windows, along one axis after the other."""
    rank = len(shape_of(x))
    for axis in range(rank - 3, rank):
        extent, wanted = shape_of(x)[axis], at.shape[axis]
        if wanted == extent:
            continue
        front = [*(other for other in range(rank) if other != axis), axis]
        shares = relax.const(np.ascontiguousarray(_shares(extent, wanted, at.dtype).T))
        along = at.emit(R.matmul(permute(at, x, front), shares))
        x = permute(at, along, [front.index(other) for other in range(rank)])
    return x


@converter("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default", "adaptive_avg_pool1d.default")
def adaptive_avg_pool(at: Site, x: Expr, output_size: Sequence[int]) -> Expr:
    """Take means over ``output_size`` windows; windows of unequal size become matrix products."""
    rank = 2 if len(output_size) == 2 else 1
    shape = shape_of(x) if rank == 2 else (*shape_of(x)[:-1], 1, shape_of(x)[-1])
    out = at.shape[-2:] if rank == 2 else (1, at.shape[-1])
    image = at.reshape(x, (1,) * (4 - len(shape)) + shape)
    if all(extent % wanted == 0 for extent, wanted in zip(shape[-2:], out, strict=True)):
        return at.reshape(at.emit(R.nn.adaptive_avg_pool2d(image, list(out))), at.shape)
    down, across = (_shares(extent, wanted, at.dtype) for extent, wanted in zip(shape[-2:], out, strict=True))
    rows = at.emit(R.matmul(relax.const(down), image))
    return at.reshape(at.emit(R.matmul(rows, relax.const(np.ascontiguousarray(across.T)))), at.shape)


def _shares(extent: int, count: int, dtype: str) -> np.ndarray:
    """Build the averaging matrix [count, extent]; PyTorch's windows overlap where sizes do not divide."""
    shares = np.zeros((count, extent), dtype)
    for index in range(count):
        first, last = index * extent // count, -(-(index + 1) * extent // count)
        shares[index, first:last] = 1 / (last - first)
    return shares
