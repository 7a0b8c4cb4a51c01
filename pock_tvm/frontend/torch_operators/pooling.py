"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, shape_of
from relay_passes.operators.resampling import resampled

from ..indices import places_of_maxima
from .reductions import max_along
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
    y = at.reshape(window.maximum(at), at.shape)
    return [y, at.reshape(window.places_of_maxima(at), at.shape)] if len(at.types) > 1 else y


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
        size, strides, self.own_padding, self.dilation = arguments
        self.strides, extents = strides, shape_of(image)[2:]
        # A single window may be larger than its image (ceil_mode): what lies beyond the padding never counts.
        self.size = size = [
            min(size[axis], extents[axis] + 2 * self.own_padding[axis])
            if out[axis] == self.dilation[axis] == 1
            else size[axis]
            for axis in (0, 1)
        ]
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
        values = _geometry(rank, size, stride, padding, dilation)
        shape = shape_of(x)
        out = at.shape[-rank:]
        if rank == 1:
            values = [[neutral, *value] for neutral, value in zip((1, 1, 0, 1), values, strict=True)]
            shape, out = (*shape[:-1], 1, shape[-1]), (1, *out)
        image = at.reshape(x, shape if len(shape) == 4 else (1,) * (4 - len(shape)) + shape)
        return cls(image, out, *values)

    def maximum(self, at: Site) -> Expr:
        """Take the maximum of each window; padding never wins."""
        return at.emit(R.nn.max_pool2d(self.image, self.size, self.strides, self.padding, self.dilation))

    def places_of_maxima(self, at: Site) -> Expr:
        """Find where in its image each window has its first maximum, counted row by row: int64 [N, C, H', W']."""
        return places_of_maxima(
            at.emit, self.image, self.size, self.strides, self.padding, self.dilation, list(self.out)
        )

    def covered(self, axis: int, with_padding: bool) -> np.ndarray:
        """Count the positions that each window covers along an axis."""
        extent, pad = shape_of(self.image)[2 + axis], self.own_padding[axis]
        starts = np.arange(self.out[axis]) * self.strides[axis] - pad
        first, last = (-pad, extent + pad) if with_padding else (0, extent)
        return np.minimum(starts + self.size[axis], last) - np.maximum(starts, first)


def _geometry(rank: int, size: Extents, stride: Extents, padding: Extents, dilation: Extents) -> list[list[int]]:
    """Return size, strides, padding and dilation along each axis. Windows without strides are side by side."""
    sizes = extents(size, rank)
    strides = extents(stride, rank) if stride not in ((), []) else sizes
    return [sizes, strides, extents(padding, rank), extents(dilation, rank)]


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
    windows: list[_Window] = []

    def pooled(window: _Window) -> Expr:
        windows.append(window)
        return window.maximum(at)

    y = _of_volumes(at, x, pooled, kernel_size, stride, padding, dilation)
    return [y, _places_in_volumes(at, *windows)] if len(at.types) > 1 else y


def _places_in_volumes(at: Site, planes: _Window, depths: _Window) -> Expr:
    """Find where in its volume each window has its first maximum, from the windows over each plane and over depth."""
    _, images, depth, flat = shape_of(depths.image)
    in_depth = at.reshape(depths.places_of_maxima(at), (images, depths.out[0] * flat))
    in_planes = at.reshape(planes.places_of_maxima(at), (images, depth * flat))
    plane = at.emit(R.floor_divide(in_depth, relax.const(flat, "int64")))
    before = at.emit(R.multiply(plane, relax.const(math.prod(shape_of(planes.image)[2:]), "int64")))
    return at.reshape(at.emit(R.add(before, at.emit(R.gather_elements(in_planes, in_depth, 1)))), at.shape)


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
    values = _geometry(3, size, stride, padding, dilation)
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
    for axis in range(-3, 0):
        shape, wanted = shape_of(x), at.shape[axis]
        behind = math.prod(shape[axis:]) // shape[axis]
        rows = at.reshape(x, (1, math.prod(shape) // (shape[axis] * behind), shape[axis], behind))
        means = at.emit(resampled(rows, _shares(shape[axis], wanted), 2))
        x = at.reshape(means, [wanted if other == len(shape) + axis else size for other, size in enumerate(shape)])
    return x


@converter("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default", "adaptive_avg_pool1d.default")
def adaptive_avg_pool(at: Site, x: Expr, output_size: Sequence[int]) -> Expr:
    """Take means over ``output_size`` windows; windows of unequal size become weighted sums along each axis."""
    rank = 2 if len(output_size) == 2 else 1
    shape = shape_of(x) if rank == 2 else (*shape_of(x)[:-1], 1, shape_of(x)[-1])
    out = at.shape[-2:] if rank == 2 else (1, at.shape[-1])
    image = at.reshape(x, (1,) * (4 - len(shape)) + shape)
    if all(extent % wanted == 0 for extent, wanted in zip(shape[-2:], out, strict=True)):
        return at.reshape(at.emit(R.nn.adaptive_avg_pool2d(image, list(out))), at.shape)
    for axis, (extent, wanted) in enumerate(zip(shape[-2:], out, strict=True), 2):
        image = at.emit(resampled(image, _shares(extent, wanted), axis))
    return at.reshape(image, at.shape)


@converter("adaptive_max_pool2d.default")
def adaptive_max_pool(at: Site, x: Expr, output_size: Sequence[int]) -> Result:
    """Take maxima over ``output_size`` windows. Windows of unequal size are read apart first, the shorter ones with
    their last position repeated."""
    shape, out = shape_of(x), at.shape[-2:]
    if tuple(out) == (1, 1):
        found = max_along(at, at.reshape(x, (*shape[:-2], math.prod(shape[-2:]))), -1)
        return [at.reshape(each, at.shape) for each in found]
    image, window, tables = at.reshape(x, (1,) * (4 - len(shape)) + shape), [], []
    for axis, (extent, wanted) in enumerate(zip(shape[-2:], out, strict=True), 2):
        ranges = _windows(extent, wanted)
        longest = max(last - first for first, last in ranges)
        places = np.concatenate([np.minimum(np.arange(first, first + longest), last - 1) for first, last in ranges])
        if not np.array_equal(places, np.arange(extent)):
            image = at.emit(R.take(image, relax.const(places, "int64"), axis))
        window.append(longest)
        tables.append(places)
    windows = _Window(image, out, window, window, [0, 0], [1, 1])
    place, width = windows.places_of_maxima(at), relax.const(shape_of(image)[3], "int64")
    row = at.emit(R.floor_divide(place, width))
    column = at.emit(R.subtract(place, at.emit(R.multiply(row, width))))
    row, column = (
        at.emit(R.take(relax.const(table, "int64"), each, 0))
        for table, each in ((tables[0] * shape[-1], row), (tables[1], column))
    )
    return [at.reshape(each, at.shape) for each in (windows.maximum(at), at.emit(R.add(row, column)))]


def _shares(extent: int, wanted: int) -> np.ndarray:
    """Return the weights [wanted, extent] of the means over equal shares of an axis."""
    shares = np.zeros((wanted, extent))
    for share, (first, last) in zip(shares, _windows(extent, wanted), strict=True):
        share[first:last] = 1 / (last - first)
    return shares


def _windows(extent: int, count: int) -> list[tuple[int, int]]:
    """List the first position of adaptive windows, and the one behind the last. They overlap where sizes do not
    divide."""
    return [(index * extent // count, -(-(index + 1) * extent // count)) for index in range(count)]
