"""Winograd's convolution F(2x2, 3x3): four results of a 3x3 convolution from 16 multiplications instead of 36.

A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1. Of the members of the
family this one adds and subtracts only, and rounds no worse than the convolution itself. Positions in a tile of 4 x 4
are numbered row by row; tiles overlap by two rows and columns. The weight gradient is that of the algorithm: sums over
the tiles of products of the same 16 positions.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence

from tvm import te, tirx

from .conv2d import pad_spatial

STEP, TILE, TAPS = 2, 4, 3
"""Results of a tile along an axis, its inputs, and the weights."""


def tiles(extent: int) -> int:
    """How many tiles it takes for so many rows of results."""
    return -(-extent // STEP)


def tiles_of_image(size: Sequence[int], padding: Sequence[int]) -> tuple[int, int]:
    """How many tiles cover the results of an image of this height and width, from top to bottom and across."""
    top, left, bottom, right = padding
    overlap = TILE - STEP
    return tiles(size[0] + top + bottom - overlap), tiles(size[1] + left + right - overlap)


def transform_weight(weight: te.Tensor, *, width: int | None = None) -> te.Tensor:
    """``U = G W G^T``: weight [3, 3, I, O] to [16, I, O], or, in strips of columns, to [16, O / width, I, width]."""
    _, _, inputs, outputs = (int(extent) for extent in weight.shape)
    r, s = te.reduce_axis((0, TAPS), name="r"), te.reduce_axis((0, TAPS), name="s")

    def transformed(t: tirx.Expr, i: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
        row, column = _g(tirx.indexdiv(t, TILE), r, weight.dtype), _g(tirx.indexmod(t, TILE), s, weight.dtype)
        return te.sum(weight(r, s, i, o) * row * column, axis=[r, s])

    if width is None:
        return te.compute((TILE * TILE, inputs, outputs), transformed, name="winograd_weight")
    return te.compute(
        (TILE * TILE, outputs // width, inputs, width),
        lambda t, strip, i, o: transformed(t, i, strip * width + o),
        name="winograd_weight",
    )


def transform_weight_gradient(products: te.Tensor) -> te.Tensor:
    """``dW = G^T dU G``: the gradient of the transformed weight, [16, I, O], to that of the weight, [3, 3, I, O]."""
    _, inputs, outputs = products.shape
    p, q = te.reduce_axis((0, TILE), name="p"), te.reduce_axis((0, TILE), name="q")

    def transformed(r: tirx.Expr, s: tirx.Expr, i: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
        factor = _g(p, r, products.dtype) * _g(q, s, products.dtype)
        return te.sum(products(p * TILE + q, i, o) * factor, axis=[p, q])

    return te.compute((TAPS, TAPS, inputs, outputs), transformed, name="winograd_weight_gradient")


def _g(position: tirx.Expr, tap: tirx.Expr, dtype: str) -> tirx.Expr:
    """G: rows (1, 0, 0), (1, 1, 1) / 2, (1, -1, 1) / 2, (0, 0, 1)."""
    one, half, zero = (tirx.const(value, dtype) for value in (1, 0.5, 0))
    middle = tirx.Select(tirx.all(position == 2, tap == 1), -half, half)
    first, last = tirx.Select(tap == 0, one, zero), tirx.Select(tap == TAPS - 1, one, zero)
    return tirx.Select(position == 0, first, tirx.Select(position == TILE - 1, last, middle))


def transform_gradient(grad: te.Tensor) -> te.Tensor:
    """``dM = A dY A^T``: the gradient of the result, [N, H, W, O], to that of the products, [16, N * tiles, O]."""
    batch, height, width, channels = (int(extent) for extent in grad.shape)
    high, wide = tiles(height), tiles(width)
    grad = pad_spatial(grad, [0, 0, STEP * high - height, STEP * wide - width])

    def terms(position: tirx.Expr) -> list[tuple[tirx.Expr | int, tirx.Expr]]:
        """The inputs of a row of A: y0, y0 + y1, y0 - y1, -y1."""
        one, zero = tirx.const(1, grad.dtype), tirx.const(0, grad.dtype)
        first = tirx.Select(position == TILE - 1, zero, one)
        return [(0, first), (1, tirx.Select(position == 0, zero, tirx.Select(position == 1, one, -one)))]

    return _transform_tiles(grad, (batch, high, wide, channels), terms, "winograd_gradient")


Terms = Callable[[tirx.Expr], list[tuple[tirx.Expr | int, tirx.Expr]]]
"""What a row of a transform adds up: rows or columns from the start of a tile, and their factors."""


def _transform_tiles(x: te.Tensor, size: tuple[int, int, int, int], terms: Terms, name: str) -> te.Tensor:
    """``T X T^T`` of each tile: X [N, .., .., C] to [16, N * tiles, C], where ``terms`` are the rows of T and ``size``
    is N, the tiles from top to bottom and across, and C."""
    batch, high, wide, channels = size

    def transformed(t: tirx.Expr, p: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        n, y, z = tirx.indexdiv(p, high * wide), tirx.indexmod(tirx.indexdiv(p, wide), high), tirx.indexmod(p, wide)
        return _sum(
            x(n, y * STEP + row, z * STEP + column, c) * (row_factor * factor)
            for row, row_factor in terms(tirx.indexdiv(t, TILE))
            for column, factor in terms(tirx.indexmod(t, TILE))
        )

    return te.compute((TILE * TILE, batch * high * wide, channels), transformed, name=name)


def _sum(terms: Iterable[tirx.Expr]) -> tirx.Expr:
    """Without the zero that ``sum`` starts with."""
    return functools.reduce(operator.add, terms)


def transform_input(x: te.Tensor, *, padding: Sequence[int]) -> te.Tensor:
    """``V = B^T X B``: X [N, H, W, I], with ``padding`` (top, left, bottom, right), to [16, N * tiles, I]."""
    batch, height, width, channels = (int(extent) for extent in x.shape)
    top, left, *_ = padding
    high, wide = tiles_of_image((height, width), padding)
    ends = [STEP * high + TILE - STEP - height - top, STEP * wide + TILE - STEP - width - left]
    x = pad_spatial(x, [top, left, *ends])

    def terms(position: tirx.Expr) -> list[tuple[tirx.Expr | int, tirx.Expr]]:
        """The two inputs of a row of B^T: d0 - d2, d1 + d2, d2 - d1, d1 - d3."""
        plus, minus = tirx.const(1, x.dtype), tirx.const(-1, x.dtype)
        first = tirx.Select(position == TILE - 1, 1, position)
        second = tirx.Select(position == 2, 1, tirx.Select(position == TILE - 1, TILE - 1, 2))
        return [(first, plus), (second, tirx.Select(position == 1, plus, minus))]

    return _transform_tiles(x, (batch, high, wide, channels), terms, "winograd_input")


def transform_output(products: te.Tensor, *, shape: Sequence[int]) -> te.Tensor:
    """``Y = A^T M A``: M [16, N * tiles, O] to Y of the ``shape`` [N, H, W, O]."""
    _, height, width, _ = shape
    high, wide = tiles(height), tiles(width)

    def sign(position: tirx.Expr, k: int) -> tirx.Expr:
        """Rows of A^T: m0 + m1 + m2, m1 - m2 - m3."""
        one = tirx.const(1, products.dtype)
        return one if k == 0 else tirx.Select(position == 1, -one, one)

    def result(n: tirx.Expr, h: tirx.Expr, w: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
        row, column = tirx.indexmod(h, STEP), tirx.indexmod(w, STEP)
        tile = (n * high + tirx.indexdiv(h, STEP)) * wide + tirx.indexdiv(w, STEP)
        return _sum(
            products((row + k) * TILE + column + m, tile, o) * (sign(row, k) * sign(column, m))
            for k in range(TAPS)
            for m in range(TAPS)
        )

    return te.compute(tuple(shape), result, name="winograd_output")
