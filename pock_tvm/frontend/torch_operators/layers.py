"""Products, convolutions, pooling and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, shape_of
from relay_passes.operators.training import normalize

from .registry import Number, Result, Site, Unsupported, converter

Extents = int | Sequence[int]

# ---- products --------------------------------------------------------------------------------------------------------


@converter("mm.default", "bmm.default", "matmul.default", "mv.default", "dot.default")
def product(
    at: Site, x: Expr, other: Expr | None = None, mat2: Expr | None = None, vec: Expr | None = None, tensor: Any = None
) -> Expr:
    """A matrix product."""
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
    """``beta * x + alpha * (a @ b)`` for each of a batch."""
    return _with_sum(at, x, _matmul(at, batch1, batch2), beta, alpha)


def _with_sum(at: Site, x: Expr, product: Expr, beta: Number, alpha: Number) -> Expr:
    if alpha != 1:
        product = at.emit(R.multiply(product, at.cast(alpha)))
    if beta == 0:  # whatever x holds, be it no numbers at all
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
    """A convolution in one, two or three dimensions, of a batch or of one image."""
    rank = len(shape_of(weight)) - 2
    operator = {1: R.nn.conv1d, 2: R.nn.conv2d, 3: R.nn.conv3d}[rank]
    strides, pads, dilations = (_extents(value, rank) for value in (stride, padding, dilation))
    x = input if len(shape_of(input)) == rank + 2 else at.emit(R.expand_dims(input, 0))
    y = at.emit(operator(x, weight, strides, pads, dilations, groups))
    return at.reshape(_with_bias(at, y, bias, rank), at.shape)


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
    """A transposed convolution; one of one dimension is one of two with height 1."""
    rank = len(shape_of(weight)) - 2
    strides, pads, extra, dilations = (_extents(v, rank) for v in (stride, padding, output_padding, dilation))
    x = input if len(shape_of(input)) == rank + 2 else at.emit(R.expand_dims(input, 0))
    if rank == 1:
        x, weight = (at.emit(R.expand_dims(operand, 2)) for operand in (x, weight))
        strides, pads, extra, dilations = [1, *strides], [0, *pads], [0, *extra], [1, *dilations]
    operator = R.nn.conv3d_transpose if rank == 3 else R.nn.conv2d_transpose
    y = at.emit(
        operator(x, weight, strides=strides, padding=pads, output_padding=extra, dilation=dilations, groups=groups)
    )
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
    """What all convolutions are in PyTorch's core set."""
    if transposed:
        return transposed_convolution(at, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return convolution_of(at, input, weight, bias, stride, padding, dilation, groups)


def _extents(value: Extents, rank: int) -> list[int]:
    """One number a dimension, where PyTorch takes one for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _with_bias(at: Site, y: Expr, bias: Expr | None, rank: int) -> Expr:
    return y if bias is None else at.emit(R.add(y, at.reshape(bias, (1, *shape_of(bias), *[1] * rank))))


# ---- pooling ---------------------------------------------------------------------------------------------------------


@converter("max_pool2d.default", "max_pool2d_with_indices.default")
def max_pool(
    at: Site,
    x: Expr,
    kernel_size: Extents,
    stride: Extents = (),
    padding: Extents = 0,
    dilation: Extents = 1,
    ceil_mode: bool = False,
    rank: int = 2,
) -> Result:
    """The largest of each window; padding never is."""
    window = _Window.of(at, x, rank, kernel_size, stride, padding, dilation)
    y = at.emit(R.nn.max_pool2d(window.image, window.size, window.strides, window.padding, window.dilation))
    y = at.reshape(y, at.shape)
    return [y, None] if len(at.types) > 1 else y


@converter("max_pool1d.default")
def max_pool_of_rows(
    at: Site,
    x: Expr,
    kernel_size: Extents,
    stride: Extents = (),
    padding: Extents = 0,
    dilation: Extents = 1,
    ceil_mode: bool = False,
) -> Result:
    """The largest of each window of a row."""
    return max_pool(at, x, kernel_size, stride, padding, dilation, ceil_mode, rank=1)


@converter("avg_pool2d.default")
def avg_pool(
    at: Site,
    x: Expr,
    kernel_size: Extents,
    stride: Extents = (),
    padding: Extents = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    rank: int = 2,
) -> Expr:
    """The mean of each window. Padding counts on request; what ``ceil_mode`` adds beyond the padding never does."""
    window = _Window.of(at, x, rank, kernel_size, stride, padding, 1)
    y = at.emit(R.nn.avg_pool2d(window.image, window.size, window.strides, window.padding, count_include_pad=True))
    taps = window.size[0] * window.size[1]
    if divisor_override is not None:
        factors = np.full((1, 1), taps / divisor_override, at.dtype)
    else:
        rows, columns = (window.covered(axis, count_include_pad) for axis in (0, 1))
        factors = (taps / (rows[:, None] * columns[None, :])).astype(at.dtype)
    if (factors != 1).any():
        y = at.emit(R.multiply(y, relax.const(factors, at.dtype)))
    return at.reshape(y, at.shape)


@converter("avg_pool1d.default")
def avg_pool_of_rows(
    at: Site,
    x: Expr,
    kernel_size: Extents,
    stride: Extents = (),
    padding: Extents = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Expr:
    """The mean of each window of a row."""
    return avg_pool(at, x, kernel_size, stride, padding, ceil_mode, count_include_pad, rank=1)


class _Window:
    """The window of a pooling, over images [N, C, H, W]."""

    def __init__(self, image: Expr, out: Sequence[int], size: list[int], strides: list[int], **rest: list[int]) -> None:
        self.image, self.out, self.size, self.strides = image, out, size, strides
        self.own_padding, self.dilation = rest["padding"], rest["dilation"]
        extents = shape_of(image)[2:]
        spans = [(size[axis] - 1) * self.dilation[axis] + 1 for axis in (0, 1)]
        # With as much behind as the last window needs: so PyTorch's ceil_mode needs no operator of its own.
        behind = [
            max(0, (out[axis] - 1) * strides[axis] + spans[axis] - extents[axis] - self.own_padding[axis])
            for axis in (0, 1)
        ]
        self.padding = [*self.own_padding, *behind]

    @classmethod
    def of(
        cls, at: Site, x: Expr, rank: int, size: Extents, stride: Extents, padding: Extents, dilation: Extents
    ) -> _Window:
        """The window of PyTorch's arguments; a row is an image of height 1, one image a batch of one."""
        sizes = _extents(size, rank)
        values = [sizes, _extents(stride, rank) if stride not in ((), []) else sizes]
        values += [_extents(padding, rank), _extents(dilation, rank)]
        shape = shape_of(x)
        out = at.shape[-rank:]
        if rank == 1:
            values = [[neutral, *value] for neutral, value in zip((1, 1, 0, 1), values, strict=True)]
            shape, out = (*shape[:-1], 1, shape[-1]), (1, *out)
        image = at.reshape(x, shape if len(shape) == 4 else (1,) * (4 - len(shape)) + shape)
        return cls(image, out, values[0], values[1], padding=values[2], dilation=values[3])

    def covered(self, axis: int, with_padding: bool) -> np.ndarray:
        """How many positions each window covers along an axis."""
        extent, pad = shape_of(self.image)[2 + axis], self.own_padding[axis]
        starts = np.arange(self.out[axis]) * self.strides[axis] - pad
        first, last = (-pad, extent + pad) if with_padding else (0, extent)
        return np.minimum(starts + self.size[axis], last) - np.maximum(starts, first)


@converter("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default", "adaptive_avg_pool1d.default")
def adaptive_avg_pool(at: Site, x: Expr, output_size: Sequence[int]) -> Expr:
    """The means of as many windows as are wanted; where they are not of one size, as products with their shares."""
    rank = 2 if len(output_size) == 2 else 1
    shape = shape_of(x) if rank == 2 else (*shape_of(x)[:-1], 1, shape_of(x)[-1])
    out = at.shape[-2:] if rank == 2 else (1, at.shape[-1])
    image = at.reshape(x, (1,) * (4 - len(shape)) + shape)
    if all(extent % wanted == 0 for extent, wanted in zip(shape[-2:], out, strict=True)):
        return at.reshape(at.emit(R.nn.adaptive_avg_pool2d(image, list(out))), at.shape)
    down, across = (_shares(extent, wanted, at.dtype) for extent, wanted in zip(shape[-2:], out, strict=True))
    rows = at.emit(R.matmul(relax.const(down), image))
    return at.reshape(at.emit(R.matmul(rows, relax.const(np.ascontiguousarray(across.T)))), at.shape)


def _shares(extent: int, count: int, dtype: str) -> np.ndarray:
    """What each position adds to each of so many means, [count, extent]: PyTorch's windows overlap by one."""
    shares = np.zeros((count, extent), dtype)
    for index in range(count):
        first, last = index * extent // count, -(-(index + 1) * extent // count)
        shares[index, first:last] = 1 / (last - first)
    return shares


# ---- normalisation ---------------------------------------------------------------------------------------------------


def _affine_or_constant(at: Site, vector: Expr | None, shape: Sequence[int], number: float) -> Expr:
    return relax.const(np.full(tuple(shape), number, at.dtype)) if vector is None else vector


@converter("_native_batch_norm_legit_no_training.default")
def batch_norm(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    weight: Expr | None,
    bias: Expr | None,
    running_mean: Expr,
    running_var: Expr,
    momentum: float,
    eps: float,
) -> Result:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` by channels, with the running statistics."""
    channels = [shape_of(input)[1]]
    results = at.emit(
        R.nn.batch_norm(
            input,
            _affine_or_constant(at, weight, channels, 1),
            _affine_or_constant(at, bias, channels, 0),
            running_mean,
            running_var,
            axis=1,
            epsilon=eps,
            center=bias is not None,
            scale=weight is not None,
            momentum=momentum,
            training=False,
        )
    )
    return [at.emit(relax.TupleGetItem(results, 0)), None, None]


@converter("_native_batch_norm_legit.no_stats")
def batch_norm_without_statistics(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    weight: Expr | None,
    bias: Expr | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Result:
    """Batch norm with the statistics of the batch, in eval mode too: ``track_running_stats=False``."""
    axes = [axis for axis in range(len(shape_of(input))) if axis != 1]
    y = at.emit(normalize(input, axes=axes, epsilon=eps, center=True))
    return [_with_affine(at, y, weight, bias), None, None]


@converter(
    *("native_batch_norm.default", "_batch_norm_with_update.default", "_batch_norm_with_update_functional.default"),
    *("_native_batch_norm_legit.default", "_native_batch_norm_legit_functional.default"),
)
def batch_norm_of_pytorch(at: Site, **_: Any) -> Result:
    """Refused: its running statistics change, and PyTorch gives no gradient through its further results."""
    raise Unsupported("is PyTorch's own, which nn.BatchNorm calls: use that, or torch.nn.functional.batch_norm")


@converter("instance_norm.default")
def instance_norm(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    weight: Expr | None,
    bias: Expr | None,
    running_mean: Expr | None,
    running_var: Expr | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
) -> Expr:
    """Each channel of each image normalised by itself; by running statistics where the module was told to keep some."""
    if not use_input_stats:
        return batch_norm(at, input, weight, bias, running_mean, running_var, momentum, eps)[0]
    axes = list(range(2, len(shape_of(input))))
    return _with_affine(at, at.emit(normalize(input, axes=axes, epsilon=eps, center=True)), weight, bias)


def _with_affine(at: Site, y: Expr, weight: Expr | None, bias: Expr | None) -> Expr:
    """Scaled and shifted by channels, along axis 1."""
    rest = [1] * (len(shape_of(y)) - 2)
    if weight is not None:
        y = at.emit(R.multiply(y, at.reshape(weight, (*shape_of(weight), *rest))))
    return y if bias is None else at.emit(R.add(y, at.reshape(bias, (*shape_of(bias), *rest))))


@converter("layer_norm.default")
def layer_norm(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    normalized_shape: Sequence[int],
    weight: Expr | None = None,
    bias: Expr | None = None,
    eps: float = 1e-5,
) -> Expr:
    """Normalised over the last axes."""
    axes = list(range(-len(normalized_shape), 0))
    gamma = _affine_or_constant(at, weight, normalized_shape, 1)
    beta = _affine_or_constant(at, bias, normalized_shape, 0)
    return at.emit(R.nn.layer_norm(input, gamma, beta, axes, eps, center=bias is not None, scale=weight is not None))


@converter("native_layer_norm.default")
def native_layer_norm(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    normalized_shape: Sequence[int],
    weight: Expr | None,
    bias: Expr | None,
    eps: float,
) -> Result:
    """Layer norm, as PyTorch's core set has it."""
    return [layer_norm(at, input, normalized_shape, weight, bias, eps), None, None]


@converter("rms_norm.default")
def rms_norm(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    normalized_shape: Sequence[int],
    weight: Expr | None = None,
    eps: float | None = None,
) -> Expr:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axes."""
    rank = len(shape_of(input))
    epsilon = float(np.finfo(at.dtype).eps) if eps is None else eps
    axes = list(range(rank - len(normalized_shape), rank))
    y = at.emit(normalize(input, axes=axes, epsilon=epsilon, center=False))
    return y if weight is None else at.emit(R.multiply(y, weight))


@converter("group_norm.default")
def group_norm(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    num_groups: int,
    weight: Expr | None = None,
    bias: Expr | None = None,
    eps: float = 1e-5,
) -> Expr:
    """Groups of channels normalised by themselves."""
    channels = [shape_of(input)[1]]
    return at.emit(
        R.nn.group_norm(
            input,
            _affine_or_constant(at, weight, channels, 1),
            _affine_or_constant(at, bias, channels, 0),
            num_groups,
            1,
            list(range(2, len(shape_of(input)))),
            eps,
            center=bias is not None,
            scale=weight is not None,
        )
    )


@converter("native_group_norm.default")
def native_group_norm(
    at: Site,
    input: Expr,  # noqa: A002 - schema
    weight: Expr | None,
    bias: Expr | None,
    group: int,
    eps: float,
    N: int = 0,
    C: int = 0,
    HxW: int = 0,
) -> Result:
    """Group norm, as PyTorch's core set has it."""
    return [group_norm(at, input, group, weight, bias, eps), None, None]
