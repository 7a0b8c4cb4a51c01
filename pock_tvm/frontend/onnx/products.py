"""Products: matrices, convolutions, transposed convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, dtype_of, scalar, shape_of

from .. import volumes
from .registry import Known, Node, converter, refuse
from .windows import spatial, window_of


@converter("MatMul")
def matmul(node: Node, a: Expr, b: Expr) -> Expr:
    """Multiply matrices; leading axes broadcast."""
    check_type(a)
    return R.matmul(a, b)


@converter("Gemm")
def gemm(
    node: Node,
    a: Expr,
    b: Expr,
    c: Expr | None = None,
    *,
    alpha: float,
    beta: float,
    transA: int,  # noqa: N803
    transB: int,  # noqa: N803
    broadcast: int = 1,
) -> Expr:
    """``alpha * A B + beta * C``."""
    check_type(a)
    y = node.emit(R.matmul(R.permute_dims(a) if transA else a, R.permute_dims(b) if transB else b))
    y = y if alpha == 1 else node.emit(R.multiply(scalar(alpha, y), y))
    if c is None or beta == 0:
        return y
    return R.add(y, c if beta == 1 else R.multiply(scalar(beta, c), c))


@converter("Conv")
def conv(
    node: Node,
    x: Expr,
    w: Expr,
    b: Expr | None = None,
    *,
    auto_pad: str,
    dilations: Sequence[int] | None = None,
    group: int,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Expr:
    """Convolve over one to three spatial axes."""
    check_type(x)
    kernel = spatial(w)
    refuse(kernel_shape and tuple(kernel_shape) != kernel, f"its attribute 'kernel_shape' is not W's, {kernel}")
    refuse(len(kernel) not in (1, 2, 3), f"it has {len(kernel)} spatial axes; one to three are supported")
    window = window_of(spatial(x), kernel, strides, dilations, pads, auto_pad)
    strides, dilations, before, after = window.strides, window.dilations, window.before, window.declared
    if len(kernel) == 3:
        y = volumes.convolved(node.emit, x, w, volumes.Geometry(strides, before, after, dilations, group))
    else:
        operator = R.nn.conv1d if len(kernel) == 1 else R.nn.conv2d
        y = node.emit(operator(x, w, list(strides), [*before, *after], list(dilations), group))
    return _with_bias(node, y, b)


@converter("ConvTranspose")
def conv_transpose(
    node: Node,
    x: Expr,
    w: Expr,
    b: Expr | None = None,
    *,
    auto_pad: str,
    dilations: Sequence[int] | None = None,
    group: int,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Expr:
    """Convert a transposed convolution (a convolution's data gradient) over one to three spatial axes."""
    check_type(x)
    kernel = spatial(w)
    rank = len(kernel)
    refuse(kernel_shape and tuple(kernel_shape) != kernel, f"its attribute 'kernel_shape' is not W's, {kernel}")
    refuse(rank not in (1, 2, 3), f"it has {rank} spatial axes; one to three are supported")
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    if output_shape or auto_pad.startswith("SAME"):
        wanted = output_shape or [extent * stride for extent, stride in zip(spatial(x), strides, strict=True)]
        pads, extra = _padding_to(spatial(x), kernel, wanted[-rank:], strides, dilations, extra, auto_pad)
    elif auto_pad == "VALID" or not pads:
        pads = [0] * (2 * rank)
    else:
        refuse(auto_pad != "NOTSET", f"its attribute 'auto_pad' is '{auto_pad}'")
        pads = list(pads)
    if rank == 1:  # as images of height 1
        x, w = node.emit(R.expand_dims(x, 2)), node.emit(R.expand_dims(w, 2))
        strides, dilations, extra, pads = [1, *strides], [1, *dilations], [0, *extra], [0, pads[0], 0, pads[1]]
    half = len(pads) // 2
    geometry = volumes.Geometry(strides, pads[:half], pads[half:], dilations, group)
    y = (volumes.transposed if rank == 3 else volumes.transposed_planes)(node.emit, x, w, geometry, extra)
    return _with_bias(node, node.emit(R.squeeze(y, [2])) if rank == 1 else y, b)


@converter("Col2Im")
def fold(
    node: Node,
    x: Expr,
    image_shape: Known,
    block_shape: Known,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Expr:
    """Add up windows [N, C * taps, windows] where they lie in an image: a transposed convolution of one tap each."""
    check_type(x)
    image, kernel = ([int(extent) for extent in known] for known in (image_shape, block_shape))
    refuse(len(image) != 2, f"its image has {len(image)} axes; two are supported")
    strides, dilations, pads = list(strides or [1, 1]), list(dilations or [1, 1]), list(pads or [0] * 4)
    rooms = [image[axis] + pads[axis] + pads[axis + 2] - dilations[axis] * (kernel[axis] - 1) - 1 for axis in (0, 1)]
    windows = [room // stride + 1 for room, stride in zip(rooms, strides, strict=True)]
    taps, batch = math.prod(kernel), shape_of(x)[0]
    rows = node.emit(R.reshape(x, (-1, taps, *windows)))
    each = relax.const(np.eye(taps, dtype=dtype_of(x)).reshape(taps, 1, *kernel))
    geometry = volumes.Geometry(strides, pads[:2], pads[2:], dilations, 1)
    rest = [room % stride for room, stride in zip(rooms, strides, strict=True)]
    y = volumes.transposed_planes(node.emit, rows, each, geometry, rest)
    return R.reshape(y, (batch, shape_of(x)[1] // taps, *image))


def _padding_to(
    size: Sequence[int],
    kernel: Sequence[int],
    wanted: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    extra: Sequence[int],
    auto_pad: str,
) -> tuple[list[int], list[int]]:
    """Return padding, all begins then all ends, and output padding with which a transposed convolution gives ``wanted``
    pixels."""
    before, after, output_padding = [], [], []
    for extent, taps, target, stride, dilation, more in zip(
        size, kernel, wanted, strides, dilations, extra, strict=True
    ):
        total = stride * (extent - 1) + more + (taps - 1) * dilation + 1 - target
        small, large = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
        output_padding.append(more + max(-total, 0))
    return [*before, *after], output_padding


def check_type(x: Expr) -> None:
    """Refuse half precision, whose sums differ between machines, and integers, which belong to quantised networks."""
    refuse(dtype_of(x) not in ("float32", "float64"), f"it multiplies {dtype_of(x)}; export the model in float32")


def _with_bias(node: Node, y: Expr, b: Expr | None) -> Expr:
    if b is None:
        return y
    return R.add(y, node.emit(R.reshape(b, (1, -1, *[1] * (len(shape_of(y)) - 2)))))
