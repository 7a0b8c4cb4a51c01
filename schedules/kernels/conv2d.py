"""What a two-dimensional convolution and its two gradients compute, channels last.

Activations are [N, H, W, C]; weights are [R, S, C_in / groups, C_out], with the output channels of one group next to
each other, as in PyTorch. ``padding`` is (top, left, bottom, right).
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx, topi


def conv2d(
    x: te.Tensor,
    weight: te.Tensor,
    *,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> te.Tensor:
    """``Y[n, h, w, o] = sum_{r, s, i} X[n, h * stride + r * dilation - pad, …, i] * W[r, s, i, o]``."""
    batch, height, width, _ = (int(extent) for extent in x.shape)
    kernel_h, kernel_w, group_in, out_channels = (int(extent) for extent in weight.shape)
    padded = pad_spatial(x, padding)
    out_h = output_extent(height, kernel_h, strides[0], padding[0] + padding[2], dilation[0])
    out_w = output_extent(width, kernel_w, strides[1], padding[1] + padding[3], dilation[1])
    group_out = out_channels // groups
    r, s = te.reduce_axis((0, kernel_h), name="r"), te.reduce_axis((0, kernel_w), name="s")

    def at(h: tirx.Expr, w: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        return h * strides[0] + r * dilation[0], w * strides[1] + s * dilation[1]

    if group_in == 1 and groups > 1:
        return te.compute(
            (batch, out_h, out_w, out_channels),
            lambda n, h, w, o: te.sum(padded(n, *at(h, w), o // group_out) * weight(r, s, 0, o), axis=[r, s]),
            name="depthwise_conv2d",
            attrs={"schedule_rule": "pock.depthwise_conv2d"},
        )
    i = te.reduce_axis((0, group_in), name="i")
    return te.compute(
        (batch, out_h, out_w, out_channels),
        lambda n, h, w, o: te.sum(
            padded(n, *at(h, w), in_channel(o, i, group_in, group_out, groups)) * weight(r, s, i, o), axis=[r, s, i]
        ),
        name="conv2d",
        attrs={"schedule_rule": "pock.conv2d"},
    )


def conv2d_data_gradient(
    grad: te.Tensor,
    weight: te.Tensor,
    *,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    size: Sequence[int],
) -> te.Tensor:
    """``dX[n, h, w, i] = sum_{r, s, o} dY[n, (h + pad - r * dilation) / stride, …, o] * W[r, s, i, o]``.

    Only the (r, s) for which the division leaves no remainder and the row and column exist count. ``size`` is the
    height and width of X. Also the forward form of a transposed convolution.
    """
    batch, out_h, out_w, out_channels = (int(extent) for extent in grad.shape)
    kernel_h, kernel_w, group_in, _ = (int(extent) for extent in weight.shape)
    group_out = out_channels // groups
    r, s = te.reduce_axis((0, kernel_h), name="r"), te.reduce_axis((0, kernel_w), name="s")

    def tap(position: tirx.Expr, axis: int, k: tirx.Expr, extent: int) -> tuple[tirx.Expr, tirx.Expr]:
        """The row (or column) of dY behind a position of dX and a tap, and whether there is one."""
        shifted = position + padding[axis] - k * dilation[axis]
        row = tirx.indexdiv(shifted, strides[axis])
        return row, tirx.all(shifted >= 0, tirx.indexmod(shifted, strides[axis]) == 0, row < extent)

    def source(n: tirx.Expr, h: tirx.Expr, w: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
        row, row_exists = tap(h, 0, r, out_h)
        column, column_exists = tap(w, 1, s, out_w)
        return tirx.if_then_else(
            tirx.all(row_exists, column_exists), grad(n, row, column, o), tirx.const(0, grad.dtype)
        )

    if group_in == 1 and groups > 1:
        m = te.reduce_axis((0, group_out), name="m")
        return te.compute(
            (batch, *size, groups),
            lambda n, h, w, c: te.sum(
                source(n, h, w, c * group_out + m) * weight(r, s, 0, c * group_out + m), axis=[r, s, m]
            ),
            name="depthwise_conv2d_data_gradient",
            attrs={"schedule_rule": "pock.depthwise_conv2d"},
        )
    o = te.reduce_axis((0, group_out), name="o")

    def out_channel(c: tirx.Expr) -> tirx.Expr:
        return o if groups == 1 else tirx.indexdiv(c, group_in) * group_out + o

    return te.compute(
        (batch, *size, group_in * groups),
        lambda n, h, w, c: te.sum(
            source(n, h, w, out_channel(c))
            * weight(r, s, c if groups == 1 else tirx.indexmod(c, group_in), out_channel(c)),
            axis=[r, s, o],
        ),
        name="conv2d_data_gradient",
        attrs={"schedule_rule": "pock.conv2d_data_gradient"},
    )


def conv2d_weight_gradient(
    x: te.Tensor,
    grad: te.Tensor,
    *,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kernel_size: Sequence[int],
) -> te.Tensor:
    """``dW[r, s, i, o] = sum_{n, h, w} X[n, h * stride + r * dilation - pad, …, i] * dY[n, h, w, o]``.

    The number of channels of X decides how many input channels the result has: a channel-sparse gradient is this with
    the trained channels of X gathered.
    """
    batch, out_h, out_w, out_channels = (int(extent) for extent in grad.shape)
    group_in = int(x.shape[3]) // groups
    group_out = out_channels // groups
    padded = pad_spatial(x, padding)
    n, h, w = (te.reduce_axis((0, extent), name=name) for extent, name in ((batch, "n"), (out_h, "h"), (out_w, "w")))
    return te.compute(
        (*kernel_size, group_in, out_channels),
        lambda r, s, i, o: te.sum(
            padded(
                n,
                h * strides[0] + r * dilation[0],
                w * strides[1] + s * dilation[1],
                in_channel(o, i, group_in, group_out, groups),
            )
            * grad(n, h, w, o),
            axis=[n, h, w],
        ),
        name="conv2d_weight_gradient",
        attrs={"schedule_rule": "pock.conv2d_weight_gradient"},
    )


def in_channel(o: tirx.Expr, i: tirx.Expr, group_in: int, group_out: int, groups: int) -> tirx.Expr:
    """The input channel behind channel ``i`` of the group that output channel ``o`` belongs to."""
    return i if groups == 1 else tirx.indexdiv(o, group_out) * group_in + i


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """The height or width of a convolution's result."""
    return (extent + padding - dilation * (kernel - 1) - 1) // stride + 1


def pad_spatial(x: te.Tensor, padding: Sequence[int]) -> te.Tensor:
    """X with zeros around each image; X itself where there is nothing to add."""
    if not any(padding):
        return x
    return topi.nn.pad(x, [0, padding[0], padding[1], 0], [0, padding[2], padding[3], 0], name="padded")
