"""Two-dimensional convolution and its two gradients, channels last.

Activations: [N, H, W, C]. Weights: [R, S, C_in / groups, C_out], the output channels of a group adjacent, as in
PyTorch. ``padding``: (top, left, bottom, right).
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx, topi

WEIGHT_GRADIENT = "pock.conv2d_weight_gradient"
"""Schedule rule of a weight gradient of a convolution that is not depthwise."""


def conv2d(
    x: te.Tensor,
    weight: te.Tensor,
    *,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> te.Tensor:
    """Compute ``Y[n, h, w, o] = sum_{r, s, i} X[n, h * stride + r * dilation - pad, …, i] * W[r, s, i, o]``."""
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
    transposed: bool = False,
    across: bool = False,
) -> te.Tensor:
    """Compute ``dX[n, h, w, i] = sum_{r, s, o} dY[n, (h + pad - r * dilation) / stride, …, o] * W[r, s, i, o]``.

    Sums over the (r, s) for which the division is exact and the position lies in dY. ``size``: height and width of X.
    ``transposed``: the weight is [R, S, C_out / groups, C_in], that of a convolution from dY to dX (:func:`turned`).
    Also the forward form of a transposed convolution.
    ``across``: each task turns its part of a dense weight in cache.
    """
    if across:
        weight, transposed = _turned(weight), True
    batch, out_h, out_w, out_channels = (int(extent) for extent in grad.shape)
    kernel_h, kernel_w = (int(extent) for extent in weight.shape[:2])
    group_in = int(weight.shape[3]) // groups if transposed else int(weight.shape[2])
    group_out = out_channels // groups
    r, s = te.reduce_axis((0, kernel_h), name="r"), te.reduce_axis((0, kernel_w), name="s")
    axes = list(zip(size, (out_h, out_w), (kernel_h, kernel_w), padding[:2], strides, dilation, strict=True))
    before = [max(0, -((pad - (kernel - 1) * step) // stride)) for _, _, kernel, pad, stride, step in axes]
    after = [max(0, (extent - 1 + pad) // stride + 1 - rows) for extent, rows, _, pad, stride, _ in axes]
    padded = pad_spatial(grad, [*before, *after])

    def tap(position: tirx.Expr, axis: int, k: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Return the row (or column) of the padded dY for a position of dX and a tap, and whether it exists."""
        shifted = position + padding[axis] - k * dilation[axis] + strides[axis] * before[axis]
        return tirx.indexdiv(shifted, strides[axis]), tirx.indexmod(shifted, strides[axis]) == 0

    def term(n: tirx.Expr, h: tirx.Expr, w: tirx.Expr, o: tirx.Expr, factor: tirx.Expr) -> tirx.Expr:
        (row, row_exists), (column, column_exists) = tap(h, 0, r), tap(w, 1, s)
        product = padded(n, row, column, o) * factor
        if tuple(strides) == (1, 1):
            return product
        return tirx.if_then_else(tirx.all(row_exists, column_exists), product, tirx.const(0, grad.dtype))

    if group_in == 1 and groups > 1 and not transposed:
        m = te.reduce_axis((0, group_out), name="m")
        channel = (lambda c: c) if group_out == 1 else (lambda c: c * group_out + m)
        return te.compute(
            (batch, *size, groups),
            lambda n, h, w, c: te.sum(
                term(n, h, w, channel(c), weight(r, s, 0, channel(c))), axis=[r, s] if group_out == 1 else [r, s, m]
            ),
            name="depthwise_conv2d_data_gradient",
            attrs={"schedule_rule": "pock.depthwise_conv2d_data_gradient", "strides": list(strides)},
        )
    o = te.reduce_axis((0, group_out), name="o")

    def out_channel(c: tirx.Expr) -> tirx.Expr:
        return o if groups == 1 else tirx.indexdiv(c, group_in) * group_out + o

    def weight_at(c: tirx.Expr) -> tirx.Expr:
        i = c if groups == 1 else tirx.indexmod(c, group_in)
        return weight(r, s, o, c) if transposed else weight(r, s, i, out_channel(c))

    return te.compute(
        (batch, *size, group_in * groups),
        lambda n, h, w, c: te.sum(term(n, h, w, out_channel(c), weight_at(c)), axis=[r, s, o]),
        name="conv2d_data_gradient",
        attrs={"schedule_rule": "pock.conv2d_data_gradient", "strides": list(strides)},
    )


def turned(weight: te.Tensor, *, groups: int) -> te.Tensor:
    """Turn the weight of a convolution in groups to [R, S, C_out / groups, C_in]: each group's matrices transposed."""
    *taps, group_in, out_channels = (int(extent) for extent in weight.shape)
    group_out = out_channels // groups
    return te.compute(
        (*taps, group_out, groups * group_in),
        lambda r, s, o, c: weight(r, s, tirx.indexmod(c, group_in), tirx.indexdiv(c, group_in) * group_out + o),
        name="turned",
    )


def _turned(weight: te.Tensor) -> te.Tensor:
    """Turn a dense weight to [R, S, C_out, C_in]."""
    *taps, inputs, outputs = weight.shape
    return te.compute(
        (*taps, outputs, inputs),
        lambda r, s, o, i: weight(r, s, i, o),
        name="turned",
        attrs={"pock.turned": int(outputs)},
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
    chunks: Sequence[int] = (1, 1),
    turned: bool = False,
) -> te.Tensor:
    """Compute ``dW[r, s, i, o] = sum_{n, h, w} X[n, h * stride + r * dilation - pad, …, i] * dY[n, h, w, o]``.

    The channels of X set the input channels of dW: for a channel-sparse gradient, X has its trained channels gathered.
    ``chunks``: number of equal parts of the batch and of the rows of dY, divisors of them. Other than (1, 1), it adds
    two leading axes of partial sums to the result. ``turned``: the result, of one group, is [.., r, s, o, i].
    """
    batch, out_h, out_w, out_channels = (int(extent) for extent in grad.shape)
    group_in = int(x.shape[3]) // groups
    group_out = out_channels // groups
    padded = pad_spatial(x, padding)
    parts = [extent // count for extent, count in zip((batch, out_h), chunks, strict=True)]
    n, h, w = (
        te.reduce_axis((0, extent), name=name) for extent, name in ((parts[0], "n"), (parts[1], "h"), (out_w, "w"))
    )
    split = tuple(chunks) != (1, 1)

    def product(*index: tirx.Var) -> tirx.Expr:
        r, s, *channels = index[-4:]
        i, o = reversed(channels) if turned else channels
        image, row = (index[0] * parts[0] + n, index[1] * parts[1] + h) if split else (n, h)
        at = (image, row * strides[0] + r * dilation[0], w * strides[1] + s * dilation[1])
        return te.sum(
            padded(*at, in_channel(o, i, group_in, group_out, groups)) * grad(image, row, w, o), axis=[n, h, w]
        )

    depthwise = group_in == 1 and groups > 1
    return te.compute(
        (*(chunks if split else ()), *kernel_size, *((out_channels, group_in) if turned else (group_in, out_channels))),
        product,
        name="conv2d_weight_gradient",
        attrs={"schedule_rule": "pock.depthwise_conv2d_weight_gradient" if depthwise else WEIGHT_GRADIENT},
    )


def in_channel(o: tirx.Expr, i: tirx.Expr, group_in: int, group_out: int, groups: int) -> tirx.Expr:
    """Return the input channel of channel ``i`` in the group of output channel ``o``."""
    return i if groups == 1 else tirx.indexdiv(o, group_out) * group_in + i


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return the height or width of a convolution's result."""
    return (extent + padding - dilation * (kernel - 1) - 1) // stride + 1


def pad_spatial(x: te.Tensor, padding: Sequence[int]) -> te.Tensor:
    """Zero-pad each image. Returns X itself without padding."""
    if not any(padding):
        return x
    return topi.nn.pad(x, [0, padding[0], padding[1], 0], [0, padding[2], padding[3], 0], name="padded")
