"""Normalisation: batch, instance, layer, RMS and group norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, shape_of
from relay_passes.operators.training import normalize

from .registry import Result, Site, Unsupported, converter


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
    """``(x - mean) / sqrt(var + eps) * weight + bias`` by channel, with running statistics."""
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
    """Convert batch norm without running statistics (``track_running_stats=False``), in eval mode too."""
    axes = [axis for axis in range(len(shape_of(input))) if axis != 1]
    y = at.emit(normalize(input, axes=axes, epsilon=eps, center=True))
    return [_with_affine(at, y, weight, bias), None, None]


@converter(
    *("native_batch_norm.default", "_batch_norm_with_update.default", "_batch_norm_with_update_functional.default"),
    *("_native_batch_norm_legit.default", "_native_batch_norm_legit_functional.default"),
)
def batch_norm_of_pytorch(at: Site, **_: Any) -> Result:
    """Refuse PyTorch's internal batch norms: they update statistics, and their further results have no gradient."""
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
    """Normalise each channel of each image, by running statistics if the module keeps them: no batch norm, since in
    training PyTorch takes those of each image."""
    if not use_input_stats:
        rest = [1] * (len(shape_of(input)) - 2)
        mean, variance = (at.reshape(each, (*shape_of(each), *rest)) for each in (running_mean, running_var))
        deviation = at.emit(R.sqrt(at.emit(R.add(variance, at.cast(eps)))))
        return _with_affine(at, at.emit(R.divide(at.emit(R.subtract(input, mean)), deviation)), weight, bias)
    axes = list(range(2, len(shape_of(input))))
    return _with_affine(at, at.emit(normalize(input, axes=axes, epsilon=eps, center=True)), weight, bias)


def _with_affine(at: Site, y: Expr, weight: Expr | None, bias: Expr | None) -> Expr:
    """Scale and shift by channel, along axis 1."""
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
    """Normalise over the last axes."""
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
    """Convert layer norm of PyTorch's core operators, whose statistics have no gradient (unlike group norm's)."""
    axes = list(range(len(shape_of(input)) - len(normalized_shape), len(shape_of(input))))
    statistics = (at.emit(R.grad.no_grad(each)) for each in _statistics(at, input, axes, eps))
    return [layer_norm(at, input, normalized_shape, weight, bias, eps), *statistics]


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
    """Normalise groups of channels."""
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
    N: int,
    C: int,
    HxW: int,
) -> Result:
    """Convert group norm of PyTorch's core operators."""
    groups = at.reshape(input, (N, group, C // group * HxW))
    statistics = (at.reshape(each, (N, group)) for each in _statistics(at, groups, [2], eps))
    return [group_norm(at, input, group, weight, bias, eps), *statistics]


def _statistics(at: Site, x: Expr, axes: list[int], eps: float) -> tuple[Expr, Expr]:
    """Compute ``mean`` and ``1 / sqrt(var + eps)`` over some axes, which stay."""
    variance = at.emit(R.variance(x, axes, keepdims=True))
    return at.emit(R.mean(x, axes, keepdims=True)), at.emit(R.rsqrt(at.emit(R.add(variance, at.cast(eps)))))
