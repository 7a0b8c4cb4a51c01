"""Matrix products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm.relax import op as R

from relay_passes.ir import Expr, shape_of

from .. import volumes
from .registry import Extents, Number, Site, Unsupported, converter, extents


@converter("mm.default", "bmm.default", "matmul.default", "mv.default", "dot.default")
def product(
    at: Site, x: Expr, other: Expr | None = None, mat2: Expr | None = None, vec: Expr | None = None, tensor: Any = None
) -> Expr:
    """Multiply matrices, vectors, or batches of them."""
    second = next(operand for operand in (other, mat2, vec, tensor) if operand is not None)
    return _matmul(at, x, second)


def _matmul(at: Site, x: Expr, y: Expr) -> Expr:
    if not at.dtype.startswith("float"):
        raise Unsupported(f"of {at.dtype} numbers is not supported. Convert them to float32")
    return at.emit(R.matmul(at.cast(x), at.cast(y)))


@converter("addmm.default", "addmv.default")
def addmm(
    at: Site,
    x: Expr,
    mat1: Expr | None = None,
    mat2: Expr | None = None,
    mat: Expr | None = None,
    vec: Expr | None = None,
    beta: Number = 1,
    alpha: Number = 1,
) -> Expr:
    """``beta * x + alpha * (a @ b)``."""
    return _with_sum(at, x, _matmul(at, mat1 if mat is None else mat, mat2 if vec is None else vec), beta, alpha)


@converter("baddbmm.default")
def baddbmm(at: Site, x: Expr, batch1: Expr, batch2: Expr, beta: Number = 1, alpha: Number = 1) -> Expr:
    """``beta * x + alpha * (a @ b)`` for batches of matrices."""
    return _with_sum(at, x, _matmul(at, batch1, batch2), beta, alpha)


def _with_sum(at: Site, x: Expr, product: Expr, beta: Number, alpha: Number) -> Expr:
    if alpha != 1:
        product = at.emit(R.multiply(product, at.cast(alpha)))
    if beta == 0:  # x is ignored, even if it is NaN
        return at.broadcast(product)
    return at.emit(R.add(product, x if beta == 1 else at.emit(R.multiply(x, at.cast(beta)))))


@converter("linear.default")
def linear(at: Site, input: Expr, weight: Expr, bias: Expr | None = None) -> Expr:  # noqa: A002 - schema
    """``x @ W^T + b``."""
    if len(shape_of(weight)) == 1:
        y = at.emit(R.matmul(input, weight))
    else:
        y = at.emit(R.matmul(input, at.emit(R.permute_dims(weight, [1, 0]))))
    return y if bias is None else at.emit(R.add(y, bias))


@converter("bilinear.default")
def bilinear(at: Site, input1: Expr, input2: Expr, weight: Expr, bias: Expr | None = None) -> Expr:
    """``y[o] = x1 @ W[o] @ x2 + b[o]`` for all rows of two tensors."""
    outputs, first, second = shape_of(weight)
    rows = math.prod(at.shape[:-1])
    table = at.reshape(at.emit(R.permute_dims(weight, [1, 0, 2])), (first, outputs * second))
    halves = at.reshape(at.emit(R.matmul(at.reshape(input1, (rows, first)), table)), (rows, outputs, second))
    columns = at.reshape(input2, (rows, second, 1))
    y = at.reshape(at.emit(R.matmul(halves, columns)), at.shape)
    return y if bias is None else at.emit(R.add(y, bias))


@converter("addbmm.default")
def addbmm(at: Site, x: Expr, batch1: Expr, batch2: Expr, beta: Number = 1, alpha: Number = 1) -> Expr:
    """``beta * x + alpha * sum(a @ b)`` over a batch of matrices."""
    return _with_sum(at, x, at.emit(R.sum(_matmul(at, batch1, batch2), axis=[0])), beta, alpha)


# ---- convolutions ----------------------------------------------------------------------------------------------------


@converter("conv1d.default", "conv2d.default", "conv3d.default")
def convolution_of(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    weight: Expr,
    bias: Expr | None = None,
    stride: Extents = 1,
    padding: Extents = 0,
    dilation: Extents = 1,
    groups: int = 1,
) -> Expr:
    """Convolve a batch or a single image over one to three dimensions."""
    rank = len(shape_of(weight)) - 2
    strides, pads, dilations = (extents(value, rank) for value in (stride, padding, dilation))
    x = _batch_of(at, input, rank)
    if rank == 3:
        y = volumes.convolved(at.emit, x, weight, volumes.Geometry(strides, pads, pads, dilations, groups))
    else:
        y = at.emit((R.nn.conv1d if rank == 1 else R.nn.conv2d)(x, weight, strides, pads, dilations, groups))
    return at.reshape(_with_bias(at, y, bias, rank), at.shape)


def _batch_of(at: Site, x: Expr, rank: int) -> Expr:
    """A batch of images of ``rank`` dimensions; of one where ``x`` is a single image."""
    return x if len(shape_of(x)) == rank + 2 else at.emit(R.expand_dims(x, 0))


@converter("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def transposed_convolution(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    weight: Expr,
    bias: Expr | None = None,
    stride: Extents = 1,
    padding: Extents = 0,
    output_padding: Extents = 0,
    groups: int = 1,
    dilation: Extents = 1,
) -> Expr:
    """Convert a transposed convolution; a 1D one becomes a 2D one of height 1."""
    rank = len(shape_of(weight)) - 2
    strides, pads, extra, dilations = (extents(v, rank) for v in (stride, padding, output_padding, dilation))
    x = _batch_of(at, input, rank)
    if rank == 1:
        x, weight = (at.emit(R.expand_dims(operand, 2)) for operand in (x, weight))
        strides, pads, extra, dilations = [1, *strides], [0, *pads], [0, *extra], [1, *dilations]
    geometry = volumes.Geometry(strides, pads, pads, dilations, groups)
    y = (volumes.transposed if rank == 3 else volumes.transposed_planes)(at.emit, x, weight, geometry, extra)
    return at.reshape(_with_bias(at, y, bias, max(rank, 2)), at.shape)


@converter("convolution.default")
def convolution(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    weight: Expr,
    bias: Expr | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Expr:
    """Convert the general convolution of PyTorch's core operators."""
    if transposed:
        return transposed_convolution(at, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return convolution_of(at, input, weight, bias, stride, padding, dilation, groups)


def _with_bias(at: Site, y: Expr, bias: Expr | None, rank: int) -> Expr:
    return y if bias is None else at.emit(R.add(y, at.reshape(bias, (1, *shape_of(bias), *[1] * rank))))
