"""Winograd convolution F(2x2, 3x3): a 2x2 output tile takes 16 multiplications instead of 36.

A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1. Unlike larger tiles, its
data transforms only add and subtract, and it rounds no worse than direct convolution. Positions in a 4 x 4 input tile
are numbered row by row; tiles overlap by two rows and columns. The weight gradient differentiates the algorithm: for
each of the 16 positions, products summed over the tiles.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence

from tvm import te, tirx

from .conv2d import pad_spatial

STEP, TILE, TAPS = 2, 4, 3
"""Outputs of a tile along an axis, its inputs, and the kernel's taps."""


def tiles(extent: int) -> int:
    """Return the number of tiles for ``extent`` rows or columns of results."""
    return -(-extent // STEP)


def tiles_of_image(size: Sequence[int], padding: Sequence[int]) -> tuple[int, int]:
    """Return the number of tiles along height and width of an image of this ``size``."""
    top, left, bottom, right = padding
    overlap = TILE - STEP
    return tiles(size[0] + top + bottom - overlap), tiles(size[1] + left + right - overlap)


def transform_weight(weight: te.Tensor, *, width: int | None = None) -> te.Tensor:
    """Compute ``U = G W G^T``: [3, 3, I, O] to [16, I, O], or in column strips to [16, O / width, I, width]."""
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
    """Compute ``dW = G^T dU G``: dU [16, I, O] to dW [3, 3, I, O]."""
    _, inputs, outputs = products.shape
    p, q = te.reduce_axis((0, TILE), name="p"), te.reduce_axis((0, TILE), name="q")

    def transformed(r: tirx.Expr, s: tirx.Expr, i: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
        factor = _g(p, r, products.dtype) * _g(q, s, products.dtype)
        return te.sum(products(p * TILE + q, i, o) * factor, axis=[p, q])

    return te.compute((TAPS, TAPS, inputs, outputs), transformed, name="winograd_weight_gradient")


def _g(position: tirx.Expr, tap: tirx.Expr, dtype: str) -> tirx.Expr:
    """Return an element of G: rows (1, 0, 0), (1, 1, 1) / 2, (1, -1, 1) / 2, (0, 0, 1)."""
    one, half, zero = (tirx.const(value, dtype) for value in (1, 0.5, 0))
    middle = tirx.Select(tirx.all(position == 2, tap == 1), -half, half)
    first, last = tirx.Select(tap == 0, one, zero), tirx.Select(tap == TAPS - 1, one, zero)
    return tirx.Select(position == 0, first, tirx.Select(position == TILE - 1, last, middle))


def transform_gradient(grad: te.Tensor) -> te.Tensor:
    """Compute ``dM = A dY A^T``: dY [N, H, W, O] to dM [16, N * tiles, O]."""
    batch, height, width, channels = (int(extent) for extent in grad.shape)
    high, wide = tiles(height), tiles(width)
    grad = pad_spatial(grad, [0, 0, STEP * high - height, STEP * wide - width])

    def terms(position: tirx.Expr) -> list[tuple[tirx.Expr | int, tirx.Expr]]:
        """Return the terms of a row of A: y0, y0 + y1, y0 - y1, -y1."""
        one, zero = tirx.const(1, grad.dtype), tirx.const(0, grad.dtype)
        first = tirx.Select(position == TILE - 1, zero, one)
        return [(0, first), (1, tirx.Select(position == 0, zero, tirx.Select(position == 1, one, -one)))]

    return _transform_tiles(grad, (batch, high, wide, channels), terms, "winograd_gradient")


Terms = Callable[[tirx.Expr], list[tuple[tirx.Expr | int, tirx.Expr]]]
"""Terms of a transform's row: row or column offsets in a tile, and their factors."""


def _transform_tiles(x: te.Tensor, size: tuple[int, int, int, int], terms: Terms, name: str) -> te.Tensor:
    """Compute ``T X T^T`` of each tile: X [N, .., .., C] to [16, N * tiles, C].

    ``terms``: the rows of T. ``size``: N, tiles along height and width, C.
    """
    batch, high, wide, channels = size

    def transformed(t: tirx.Expr, p: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        n, y, z = tirx.indexdiv(p, high * wide), tirx.indexmod(tirx.indexdiv(p, wide), high), tirx.indexmod(p, wide)
        return _sum(
            x(n, y * STEP + row, z * STEP + column, c) * (row_factor * factor)
            for row, row_factor in terms(tirx.indexdiv(t, TILE))
            for column, factor in terms(tirx.indexmod(t, TILE))
        )

    return te.compute((TILE * TILE, batch * high * wide, channels), transformed, name=name)


def _at(position: tirx.Expr, turned: bool) -> tirx.Expr:
    """Return a position along an axis of a tile; ``turned``, the first and the last change places."""
    if not turned:
        return position
    return tirx.Select(position == 0, TILE - 1, tirx.Select(position == TILE - 1, 0, position))


def _sum(terms: Iterable[tirx.Expr]) -> tirx.Expr:
    """Add terms, without the zero that ``sum`` starts with."""
    return functools.reduce(operator.add, terms)


def transform_input(x: te.Tensor, *, padding: Sequence[int], turned: bool = False) -> te.Tensor:
    """Compute ``V = B^T X B``: X [N, H, W, I], with ``padding`` (top, left, bottom, right), to [16, N * tiles, I].

    ``turned``: in the order of positions in which the transform of a kernel is that of the kernel turned by 180
    degrees, as the data gradient reads it. Reversing the taps swaps the first and the last row of G.
    """
    batch, height, width, channels = (int(extent) for extent in x.shape)
    top, left, *_ = padding
    high, wide = tiles_of_image((height, width), padding)
    ends = [STEP * high + TILE - STEP - height - top, STEP * wide + TILE - STEP - width - left]
    x = pad_spatial(x, [top, left, *ends])

    def terms(position: tirx.Expr) -> list[tuple[tirx.Expr | int, tirx.Expr]]:
        """Return the terms of a row of B^T: d0 - d2, d1 + d2, d2 - d1, d1 - d3; turned, the last row is the first."""
        plus, minus = tirx.const(1, x.dtype), tirx.const(-1, x.dtype)
        # Written out for both orders: of selections inside selections LLVM made one fused kernel in a minute.
        if turned:
            first = tirx.Select(position == TILE - 1, 0, tirx.max(position, 1))
            second = tirx.Select(position == 0, TILE - 1, tirx.Select(position == 2, 1, 2))
        else:
            first = tirx.Select(position == TILE - 1, 1, position)
            second = tirx.Select(position == 2, 1, tirx.Select(position == TILE - 1, TILE - 1, 2))
        return [(first, plus), (second, tirx.Select(position == 1, plus, minus))]

    return _transform_tiles(x, (batch, high, wide, channels), terms, "winograd_input")


def transform_output(products: te.Tensor, *, shape: Sequence[int], turned: bool = False) -> te.Tensor:
    """Compute ``Y = A^T M A``: M [16, N * tiles, O] to Y of the ``shape`` [N, H, W, O].

    ``turned``: M is of a turned input (:func:`transform_input`).
    """
    _, height, width, _ = shape
    high, wide = tiles(height), tiles(width)

    def sign(position: tirx.Expr, k: int) -> tirx.Expr:
        """Return the sign of a term in a row of A^T: m0 + m1 + m2, m1 - m2 - m3."""
        one = tirx.const(1, products.dtype)
        return one if k == 0 else tirx.Select(position == 1, -one, one)

    def result(n: tirx.Expr, h: tirx.Expr, w: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
        row, column = tirx.indexmod(h, STEP), tirx.indexmod(w, STEP)
        tile = (n * high + tirx.indexdiv(h, STEP)) * wide + tirx.indexdiv(w, STEP)
        return _sum(
            products(_at(row + k, turned) * TILE + _at(column + m, turned), tile, o) * (sign(row, k) * sign(column, m))
            for k in range(TAPS)
            for m in range(TAPS)
        )

    return te.compute(tuple(shape), result, name="winograd_output")
