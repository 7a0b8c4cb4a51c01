"""Products in NumPy, for kernels to be compared with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def matmul_reference(a: np.ndarray, b: np.ndarray, *, transpose_a: bool, transpose_b: bool, **_: Any) -> np.ndarray:
    return (a.swapaxes(-1, -2) if transpose_a else a) @ (b.swapaxes(-1, -2) if transpose_b else b)


def across_reference(a: np.ndarray, strips: np.ndarray, **_: Any) -> np.ndarray:
    matrix = np.concatenate(np.moveaxis(strips, -3, 0), axis=-1)[..., : a.shape[-1]]
    return a @ matrix.swapaxes(-1, -2)


def strips_reference(a: np.ndarray, strips: np.ndarray, **_: Any) -> np.ndarray:
    return a @ np.concatenate(np.moveaxis(strips, -3, 0), axis=-1)


def taps(
    kernel_size: Sequence[int], out: Sequence[int], *, strides, dilation, **_: Any
) -> Iterator[tuple[int, int, tuple[slice, slice, slice]]]:
    """Each tap of a convolution, and what all results read with it of an image within its padding."""
    for r, s in itertools.product(*map(range, kernel_size)):
        top, left = r * dilation[0], s * dilation[1]
        rows = slice(top, top + (out[0] - 1) * strides[0] + 1, strides[0])
        columns = slice(left, left + (out[1] - 1) * strides[1] + 1, strides[1])
        yield r, s, (slice(None), rows, columns)


def frame(size: Sequence[int], kernel_size: Sequence[int], out: Sequence[int], *, strides, padding, dilation) -> list:
    """Height and width of an image within its padding; at least what the taps read."""
    return [
        max(size[axis] + padding[axis] + padding[axis + 2], (out[axis] - 1) * strides[axis] + (kernel_size[axis] - 1) * dilation[axis] + 1)
        for axis in (0, 1)
    ]  # fmt: skip


def framed(x: np.ndarray, extents: Sequence[int], padding: Sequence[int]) -> np.ndarray:
    result = np.zeros((x.shape[0], *extents, x.shape[3]))
    result[:, padding[0] : padding[0] + x.shape[1], padding[1] : padding[1] + x.shape[2]] = x
    return result


def of_groups(groups: int, group_in: int, group_out: int) -> Iterator[tuple[slice, slice]]:
    """The input and the output channels of each group."""
    for group in range(groups):
        yield slice(group * group_in, (group + 1) * group_in), slice(group * group_out, (group + 1) * group_out)


def conv2d_reference(x: np.ndarray, weight: np.ndarray, *, groups: int, **geometry: Any) -> np.ndarray:
    kernel_size, group_in, channels = weight.shape[:2], weight.shape[2], weight.shape[3]
    out = out_size(x.shape[1:3], kernel_size, **geometry)
    padded = framed(x, frame(x.shape[1:3], kernel_size, out, **geometry), geometry["padding"])
    y = np.zeros((x.shape[0], *out, channels))
    for r, s, window in taps(kernel_size, out, **geometry):
        for i, o in of_groups(groups, group_in, channels // groups):
            y[..., o] += padded[window][..., i] @ weight[r, s, :, o]
    return y


def data_gradient_reference(
    grad: np.ndarray, weight: np.ndarray, *, groups: int, size: Sequence[int], transposed: bool = False, **geometry: Any
) -> np.ndarray:
    weight = weight.swapaxes(2, 3) if transposed else weight
    kernel_size, group_in, out = weight.shape[:2], weight.shape[2], grad.shape[1:3]
    dx = np.zeros((grad.shape[0], *frame(size, kernel_size, out, **geometry), group_in * groups))
    for r, s, window in taps(kernel_size, out, **geometry):
        for i, o in of_groups(groups, group_in, grad.shape[3] // groups):
            dx[window][..., i] += grad[..., o] @ weight[r, s, :, o].T
    top, left = geometry["padding"][:2]
    return dx[:, top : top + size[0], left : left + size[1]]


def weight_gradient_reference(
    x: np.ndarray,
    grad: np.ndarray,
    *,
    groups: int,
    kernel_size: Sequence[int],
    chunks: tuple[int, int] = (1, 1),
    **geometry: Any,
) -> np.ndarray:
    (batch, *out, channels), group_in = grad.shape, x.shape[3] // groups
    padded = framed(x, frame(x.shape[1:3], kernel_size, out, **geometry), geometry["padding"])
    sums = np.zeros((*chunks, *kernel_size, group_in, channels))
    images, rows = batch // chunks[0], out[0] // chunks[1]
    for a, b in itertools.product(*map(range, chunks)):
        part = slice(a * images, (a + 1) * images), slice(b * rows, (b + 1) * rows)
        for r, s, window in taps(kernel_size, out, **geometry):
            for i, o in of_groups(groups, group_in, channels // groups):
                sums[a, b, r, s, :, o] = np.einsum("nhwi,nhwo->io", padded[window][part][..., i], grad[part][..., o])
    return sums if chunks != (1, 1) else sums[0, 0]


def out_size(size: Sequence[int], kernel_size: Sequence[int], *, strides, padding, dilation) -> list[int]:
    return [
        (size[axis] + padding[axis] + padding[axis + 2] - dilation[axis] * (kernel_size[axis] - 1) - 1) // strides[axis] + 1
        for axis in (0, 1)
    ]  # fmt: skip
