"""Normalisations and dropout."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, constant_value, dtype_of, scalar, shape_of
from relay_passes.operators import random
from relay_passes.operators.training import normalize

from .registry import Known, Node, Unsupported, converter, refuse

EVAL = "; export the model in eval mode (model.eval() before torch.onnx.export)"


@converter("BatchNormalization")
def batch_norm(
    node: Node,
    x: Expr,
    scale: Expr,
    bias: Expr,
    mean: Expr,
    variance: Expr,
    *,
    epsilon: float,
    momentum: float,
    training_mode: int = 0,
    spatial: int = 1,
    is_test: int = 1,
) -> Expr:
    """Convert batch norm with running statistics. ONNX's momentum weighs the old statistics, PyTorch's the new."""
    refuse(training_mode or not is_test or any(node.wants(output) for output in range(1, 5)),
           "it normalises with the statistics of each batch" + EVAL)  # fmt: skip
    refuse(not spatial, "its attribute 'spatial' is 0")
    refuse(len(shape_of(x)) < 2, "its input has no channels")
    result = R.nn.batch_norm(
        x, scale, bias, mean, variance, axis=1, epsilon=epsilon, momentum=1 - momentum, training=False
    )
    return relax.TupleGetItem(node.emit(result), 0)


@converter("InstanceNormalization")
def instance_norm(node: Node, x: Expr, scale: Expr, bias: Expr, *, epsilon: float) -> Expr:
    """Normalise each channel of each image."""
    return R.nn.instance_norm(x, scale, bias, channel_axis=1, axes=list(range(2, len(shape_of(x)))), epsilon=epsilon)


@converter("GroupNormalization")
def group_norm(
    node: Node, x: Expr, scale: Expr, bias: Expr, *, epsilon: float, num_groups: int, stash_type: int = 1
) -> Expr:
    """Normalise groups of channels of each image."""
    _check_stash(x, stash_type)
    channels = shape_of(x)[1]
    if node.version < 21 and num_groups != channels:  # one number a group, until operator set 21
        scale, bias = (node.emit(R.repeat(vector, channels // num_groups, 0)) for vector in (scale, bias))
    axes = list(range(2, len(shape_of(x))))
    return R.nn.group_norm(x, scale, bias, num_groups=num_groups, channel_axis=1, axes=axes, epsilon=epsilon)


@converter("LayerNormalization")
def layer_norm(
    node: Node, x: Expr, scale: Expr, bias: Expr | None = None, *, axis: int, epsilon: float, stash_type: int
) -> list[Expr]:
    """Normalise over all axes from ``axis`` on; also give mean and inverse deviation if they are read."""
    _check_stash(x, stash_type)
    rank = len(shape_of(x))
    axes = list(range(axis % rank, rank))
    y = _affine(node, node.emit(normalize(x, axes=axes, epsilon=epsilon, center=True)), scale, bias)
    if not node.wants(1) and not node.wants(2):
        return [y]
    mean = node.emit(R.mean(x, axes, keepdims=True))
    apart = node.emit(R.subtract(x, mean))
    variance = R.mean(R.multiply(apart, apart), axes, keepdims=True)
    return [y, mean, R.rsqrt(R.add(variance, scalar(epsilon, x)))]


@converter("RMSNormalization")
def rms_norm(node: Node, x: Expr, scale: Expr, *, axis: int, epsilon: float, stash_type: int) -> Expr:
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over all axes from ``axis`` on."""
    _check_stash(x, stash_type)
    rank = len(shape_of(x))
    y = normalize(x, axes=list(range(axis % rank, rank)), epsilon=epsilon, center=False)
    return _affine(node, node.emit(y), scale, None)


def _affine(node: Node, y: Expr, scale: Expr, bias: Expr | None) -> Expr:
    y = node.emit(R.multiply(y, scale))
    return y if bias is None else node.emit(R.add(y, bias))


def _check_stash(x: Expr, stash_type: int) -> None:
    refuse(
        stash_type != 1 or dtype_of(x) != "float32", f"it normalises {dtype_of(x)} in type {stash_type}, not float32"
    )


@converter("LRN")
def local_response(node: Node, x: Expr, *, alpha: float, beta: float, bias: float, size: int) -> Expr:
    """``x / (bias + alpha / size * sum of x^2 over size channels around)^beta``."""
    shape = shape_of(x)
    before, after = (size - 1) // 2, math.ceil((size - 1) / 2)
    widths = [0] * (2 * len(shape))
    widths[2:4] = [before, after]
    squares = node.emit(R.nn.pad(node.emit(R.multiply(x, x)), widths))
    parts = [node.emit(R.strided_slice(squares, [1], [first], [first + shape[1]])) for first in range(size)]
    total = parts[0]
    for part in parts[1:]:
        total = node.emit(R.add(total, part))
    inner = R.add(scalar(bias, x), R.multiply(scalar(alpha / size, x), total))
    return R.divide(x, R.power(inner, scalar(beta, x)))


@converter("Dropout")
def dropout(
    node: Node,
    x: Expr,
    rate: Expr | None = None,
    training_mode: Known | None = None,
    *,
    ratio: float = 0.5,
    seed: int = 0,
    is_test: int = 1,
) -> list[Expr]:
    """Convert dropout: an identity unless it is on; ``seed`` numbers what it draws."""
    refuse(not is_test, "it drops values out" + EVAL)
    is_on = training_mode is not None and bool(training_mode.reshape(-1)[0])
    known = np.asarray(ratio) if rate is None else constant_value(rate)
    if is_on and known is None:
        raise Unsupported("its input 'ratio' is computed from the model's inputs; it has to be a constant")
    shape = shape_of(x)
    share = float(known.reshape(-1)[0]) if is_on and known is not None else 0.0
    refuse(not 0 <= share < 1, f"its input 'ratio' is {share:g}, not in [0, 1)")
    if share:
        drawn = random.keep(relax.const(random.NOTHING), count=math.prod(shape), rate=share, stream=seed)
        kept = node.emit(R.reshape(node.emit(drawn), shape))
        y = random.drop(x, kept, scale=1 / (1 - share), shift=0.0, other=0.0, expected=1.0)
        return [node.emit(y), kept]
    if not node.wants(1):
        return [x]
    dtype = "bool" if node.version >= 10 else dtype_of(x)
    return [x, relax.const(np.ones(shape, dtype), dtype)]
