"""Max-pooling and the gradients of pooling, channels last.

Activations: [N, H, W, C]. ``padding``: (top, left, bottom, right).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from .functions import isnan, negated
from .reduction import extremum, worst


def max_pool2d_argmax(
    x: te.Tensor,
    *,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_size: Sequence[int],
) -> te.Tensor:
    """Return the tap (row * width + column) of each window's maximum, as [N, H', W', C].

    As in PyTorch, the first of equals, or the last NaN. A training step keeps it instead of X: uint8 for windows of up
    to 256 taps, else int32.
    """
    dtype = argmax_dtype(pool_size)

    def place_of_maximum(left: tuple, right: tuple) -> tuple:
        """Combine two taps. Taps come in reverse order: of equals the later one wins, and the first NaN."""
        is_better = tirx.all(negated(right[1] < left[1]), negated(isnan(left[1])))
        return tuple(tirx.Select(is_better, new, old) for new, old in zip(right, left, strict=True))

    def identity(index_dtype: str, value_dtype: str) -> tuple:
        return tirx.const(0, index_dtype), worst(value_dtype, least=False)

    argmax = te.comm_reducer(place_of_maximum, identity, name="place_of_maximum")

    def element(value: tirx.Expr, tap: tirx.Expr) -> tuple:
        return tirx.Cast(dtype, tap), value

    return _over_windows(x, element, argmax, "max_pool2d_argmax", pool_size, strides, padding, dilation, out_size)[0]


def max_pool2d(
    x: te.Tensor,
    *,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_size: Sequence[int],
) -> te.Tensor:
    """Compute the maximum of each window, as [N, H', W', C]; NaN propagates."""
    maximum = extremum(x.dtype, least=False)
    return _over_windows(
        x, lambda value, _tap: value, maximum, "max_pool2d", pool_size, strides, padding, dilation, out_size
    )


def _over_windows(
    x: te.Tensor,
    element: Callable[[tirx.Expr, tirx.Expr], Any],
    reducer: Callable[..., Any],
    name: str,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_size: Sequence[int],
) -> Any:
    """Reduce ``element(value, tap)`` over the taps of each window, last to first.

    A tap in the padding is clamped to the nearest one inside, which changes no maximum. A window entirely in the
    padding reads -inf.
    """
    batch, *image, channels = (int(extent) for extent in x.shape)
    taps = te.reduce_axis((0, pool_size[0]), name="r"), te.reduce_axis((0, pool_size[1]), name="s")

    def bounds(at: Any, axis: int) -> tuple[Any, Any]:
        """Return the first and the last tap of a window inside the image."""
        start = at * strides[axis] - padding[axis]
        return (dilation[axis] - 1 - start) // dilation[axis], (image[axis] - 1 - start) // dilation[axis]

    def inside(at: tirx.Expr, axis: int) -> tuple[tirx.Expr, tirx.Expr]:
        """Return a clamped tap, and the row or column that it reads."""
        first, last = bounds(at, axis)
        tap: tirx.Expr = pool_size[axis] - 1 - taps[axis]
        starts, ends = (bounds(position, axis) for position in (0, out_size[axis] - 1))
        tap = tirx.max(tap, first) if starts[0] > 0 else tap
        tap = tirx.min(tap, last) if ends[1] < pool_size[axis] - 1 else tap
        return tap, at * strides[axis] + tap * dilation[axis] - padding[axis]

    def is_empty(at: int, axis: int) -> bool:
        first, last = bounds(at, axis)
        return max(first, 0) > min(last, pool_size[axis] - 1)

    empty = [[at for at in range(out_size[axis]) if is_empty(at, axis)] for axis in (0, 1)]

    def window(n: tirx.Expr, h: tirx.Expr, w: tirx.Expr, c: tirx.Expr) -> Any:
        (r, row), (s, column) = inside(h, 0), inside(w, 1)
        value = x(n, row, column, c)
        missing = [position == at for position, axis in ((h, 0), (w, 1)) for at in empty[axis]]
        if missing:
            value = tirx.if_then_else(tirx.any(*missing), worst(x.dtype, least=False), value)
        return reducer(element(value, r * pool_size[1] + s), axis=list(taps))

    return te.compute((batch, *out_size, channels), window, name=name)


def argmax_dtype(pool_size: Sequence[int]) -> str:
    """Return the smallest integer dtype that numbers the taps of a window."""
    return "uint8" if pool_size[0] * pool_size[1] <= 256 else "int32"


def max_pool2d_gradient(
    argmax: te.Tensor,
    grad: te.Tensor,
    *,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
) -> te.Tensor:
    """Sum, for each element of X, the gradients of the windows whose maximum it is.

    ``size``: height and width of X.
    """

    def share(n: tirx.Expr, row: tirx.Expr, column: tirx.Expr, c: tirx.Expr, tap: tirx.Expr) -> tirx.Expr:
        chosen = argmax(n, row, column, c) == tirx.Cast(argmax.dtype, tap)
        return tirx.Select(chosen, grad(n, row, column, c), tirx.const(0, grad.dtype))

    return _gather_windows(grad, share, "max_pool2d_gradient", pool_size, strides, padding, dilation, size)


def avg_pool2d_gradient(
    grad: te.Tensor,
    *,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    count_include_pad: bool,
    size: Sequence[int],
) -> te.Tensor:
    """Sum, for each element of X, an equal share of the gradient of each window that contains it.

    As in PyTorch, ``count_include_pad`` counts padding as part of a window; what ``ceil_mode`` adds beyond never
    counts.
    """

    def covered(start: tirx.Expr, axis: int) -> tirx.Expr:
        first, last = (-padding[axis], size[axis] + padding[axis + 2]) if count_include_pad else (0, size[axis])
        end = tirx.min(start + (pool_size[axis] - 1) * dilation[axis] + 1, last)
        return tirx.indexdiv(end - tirx.max(start, first) + dilation[axis] - 1, dilation[axis])

    def share(n: tirx.Expr, row: tirx.Expr, column: tirx.Expr, c: tirx.Expr, _tap: tirx.Expr) -> tirx.Expr:
        taps = covered(row * strides[0] - padding[0], 0) * covered(column * strides[1] - padding[1], 1)
        return grad(n, row, column, c) / tirx.Cast(grad.dtype, taps)

    return _gather_windows(grad, share, "avg_pool2d_gradient", pool_size, strides, padding, dilation, size)


def _gather_windows(
    grad: te.Tensor,
    share: Callable[..., tirx.Expr],
    name: str,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
) -> te.Tensor:
    """Sum ``share`` over the windows that contain each position of X."""
    batch, out_h, out_w, channels = (int(extent) for extent in grad.shape)
    r, s = te.reduce_axis((0, pool_size[0]), name="r"), te.reduce_axis((0, pool_size[1]), name="s")

    def total(n: tirx.Expr, h: tirx.Expr, w: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        down, across = h + padding[0] - r * dilation[0], w + padding[1] - s * dilation[1]
        row, column = tirx.indexdiv(down, strides[0]), tirx.indexdiv(across, strides[1])
        exists = tirx.all(
            down >= 0,
            across >= 0,
            tirx.indexmod(down, strides[0]) == 0,
            tirx.indexmod(across, strides[1]) == 0,
            row < out_h,
            column < out_w,
        )
        value = share(n, row, column, c, r * pool_size[1] + s)
        return te.sum(tirx.if_then_else(exists, value, tirx.const(0, grad.dtype)), axis=[r, s])

    return te.compute((batch, *size, channels), total, name=name)
