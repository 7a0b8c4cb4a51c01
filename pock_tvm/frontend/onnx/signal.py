"""Fourier transforms, as products with a constant matrix: complex numbers are pairs along the last axis."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, dtype_of, shape_of

from .products import check_type
from .registry import Known, Node, converter, refuse

LARGEST = 2**27
"""Most elements of a transform's matrix, 512 MB: that of 8192 real numbers."""


@converter("DFT")
def dft(
    node: Node,
    x: Expr,
    length: Known | None = None,
    along: Known | None = None,
    *,
    axis: int = -2,
    inverse: int,
    onesided: int,
) -> Expr:
    """Transform along an axis, cropped or padded with zeros to a length."""
    axis = (axis if along is None else int(along.reshape(-1)[0])) % len(shape_of(x))
    count = None if length is None else int(length.reshape(-1)[0])
    return _transformed(node, x, axis, count, inverse=bool(inverse), onesided=bool(onesided))


@converter("STFT")
def stft(
    node: Node, x: Expr, step: Known, window: Expr | None = None, length: Known | None = None, *, onesided: int
) -> Expr:
    """Transform frames of a signal [batch, samples, 1 or 2] to [batch, frames, frequencies, 2]."""
    refuse(window is None and length is None, "it has neither a window nor a length of its frames")
    size = int(length.reshape(-1)[0]) if length is not None else shape_of(window)[0]
    hop = int(step.reshape(-1)[0])
    frames = (shape_of(x)[1] - size) // hop + 1
    places = np.arange(frames)[:, None] * hop + np.arange(size)
    framed = node.emit(R.take(x, relax.const(places.astype("int64"), "int64"), axis=1))
    if window is not None:
        framed = node.emit(R.multiply(framed, R.reshape(window, (size, 1))))
    return _transformed(node, framed, 2, None, inverse=False, onesided=bool(onesided))


def _transformed(node: Node, x: Expr, axis: int, count: int | None, *, inverse: bool, onesided: bool) -> Expr:
    """Multiply by the transform's matrix along an axis of x, whose last axis holds real numbers, or pairs."""
    check_type(x)
    shape = shape_of(x)
    rank, parts = len(shape), shape[-1]
    refuse(axis == rank - 1 or parts not in (1, 2), "its last axis holds neither real nor complex numbers")
    if count is None:
        count = 2 * (shape[axis] - 1) if inverse and onesided else shape[axis]
    size = 2 * parts * shape[axis] * count
    refuse(size > LARGEST, f"it transforms {count} numbers, by a matrix of {size} elements; {LARGEST} are the most")
    matrix = _matrix(shape[axis], parts, count, inverse=inverse, onesided=onesided)
    others = [at for at in range(rank - 1) if at != axis]
    rows = node.emit(R.permute_dims(x, [*others, axis, rank - 1]))
    rows = node.emit(R.reshape(rows, [*(shape[at] for at in others), shape[axis] * parts]))
    made = matrix.shape[2:]
    flat = relax.const(np.ascontiguousarray(matrix.reshape(shape[axis] * parts, -1)).astype(dtype_of(x)), dtype_of(x))
    y = node.emit(R.matmul(rows, flat))
    y = node.emit(R.reshape(y, [*(shape[at] for at in others), *made]))
    return R.permute_dims(y, [*range(axis), rank - 2, *range(axis, rank - 2), rank - 1])


def _matrix(extent: int, parts: int, count: int, *, inverse: bool, onesided: bool) -> np.ndarray:
    """Build the matrix [extent, parts, results, real and imaginary part] of a transform of ``count`` numbers.

    A one-sided transform gives the frequencies up to the middle; its inverse reads them, and gives real numbers.
    """
    results = count // 2 + 1 if onesided and not inverse else count
    read = count // 2 + 1 if onesided and inverse else count
    angles = 2 * np.pi / count * (np.arange(extent)[:, None] * np.arange(results) % count)
    cos, sin = np.cos(angles), np.sin(angles) * (-1 if inverse else 1)
    matrix = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], 1)[:, :parts]
    matrix[read:] = 0
    if not inverse:
        return matrix
    if onesided:  # each frequency but the first, and the middle one, stands for two
        matrix = matrix[..., :1] * np.where(np.isin(2 * np.arange(extent) % count, 0), 1, 2)[:, None, None, None]
    return matrix / count
