"""Winograd's convolution F(2x2, 3x3): four results of a 3x3 convolution from 16 multiplications instead of 36.

A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1. Of the members of the
family this one adds and subtracts only, and rounds no worse than the convolution itself. Positions in a tile of 4 x 4
are numbered row by row; tiles overlap by two rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from .conv2d import pad_spatial

STEP, TILE = 2, 4
"""Results of a tile along an axis, and inputs."""


def tiles(extent: int) -> int:
    """How many tiles it takes for so many rows of results."""
    return -(-extent // STEP)


def tiles_of_image(size: Sequence[int], padding: Sequence[int]) -> tuple[int, int]:
    """How many tiles cover the results of an image of this height and width, from top to bottom and across."""
    top, left, bottom, right = padding
    overlap = TILE - STEP
    return tiles(size[0] + top + bottom - overlap), tiles(size[1] + left + right - overlap)


def transform_weight(weight: te.Tensor) -> te.Tensor:
    """``U = G W G^T``: weight [3, 3, I, O] to [16, I, O]."""
    _, _, inputs, outputs = weight.shape
    # Rows of G: (1, 0, 0), (1, 1, 1) / 2, (1, -1, 1) / 2, (0, 0, 1).
    r, s = te.reduce_axis((0, 3), name="r"), te.reduce_axis((0, 3), name="s")

    def factor(position: tirx.Expr, tap: tirx.Expr) -> tirx.Expr:
        one, half, zero = (tirx.const(value, weight.dtype) for value in (1, 0.5, 0))
        middle = tirx.Select(tirx.all(position == 2, tap == 1), -half, half)
        first, last = tirx.Select(tap == 0, one, zero), tirx.Select(tap == 2, one, zero)
        return tirx.Select(position == 0, first, tirx.Select(position == TILE - 1, last, middle))

    return te.compute(
        (TILE * TILE, inputs, outputs),
        lambda t, i, o: te.sum(
            weight(r, s, i, o) * factor(tirx.indexdiv(t, TILE), r) * factor(tirx.indexmod(t, TILE), s), axis=[r, s]
        ),
        name="winograd_weight",
    )


def transform_input(x: te.Tensor, *, padding: Sequence[int]) -> te.Tensor:
    """``V = B^T X B``: X [N, H, W, I], with ``padding`` (top, left, bottom, right), to [16, N * tiles, I]."""
    batch, height, width, channels = (int(extent) for extent in x.shape)
    top, left, *_ = padding
    high, wide = tiles_of_image((height, width), padding)
    ends = [STEP * high + TILE - STEP - height - top, STEP * wide + TILE - STEP - width - left]
    x = pad_spatial(x, [top, left, *ends])

    def terms(position: tirx.Expr) -> list[tuple[tirx.Expr, tirx.Expr]]:
        """The two inputs of a row of B^T: d0 - d2, d1 + d2, d2 - d1, d1 - d3."""
        plus, minus = tirx.const(1, x.dtype), tirx.const(-1, x.dtype)
        first = tirx.Select(position == TILE - 1, 1, position)
        second = tirx.Select(position == 2, 1, tirx.Select(position == TILE - 1, TILE - 1, 2))
        return [(first, plus), (second, tirx.Select(position == 1, plus, minus))]

    def transformed(t: tirx.Expr, p: tirx.Expr, i: tirx.Expr) -> tirx.Expr:
        n, y, z = tirx.indexdiv(p, high * wide), tirx.indexmod(tirx.indexdiv(p, wide), high), tirx.indexmod(p, wide)
        total = None
        for row, row_sign in terms(tirx.indexdiv(t, TILE)):
            for column, sign in terms(tirx.indexmod(t, TILE)):
                term = x(n, y * STEP + row, z * STEP + column, i) * (row_sign * sign)
                total = term if total is None else total + term
        return total

    return te.compute((TILE * TILE, batch * high * wide, channels), transformed, name="winograd_input")


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
        total = None
        for k in range(3):
            for m in range(3):
                term = products((row + k) * TILE + column + m, tile, o) * (sign(row, k) * sign(column, m))
                total = term if total is None else total + term
        return total

    return te.compute(tuple(shape), result, name="winograd_output")
