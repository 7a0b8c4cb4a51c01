"""Where we translate an operator ourselves instead of leaving it to TVM's importer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import constant_value, dtype_of, is_float, op_name, scalar, shape_of
from relay_passes.operators.training import hardtanh, matmul, normalize

# Operators that stay whole when the rest is decomposed: each has a gradient rule, or is rewritten as a whole.
KEPT_WHOLE = frozenset(
    [
        "adaptive_avg_pool2d",
        "avg_pool2d",
        "batch_norm",
        "conv1d",
        "conv2d",
        "conv_transpose2d",
        "elu",
        "embedding",
        "gelu",
        "group_norm",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "instance_norm",
        "layer_norm",
        "leaky_relu",
        "linear",
        "log_softmax",
        "max_pool2d",
        "relu6",
        "rms_norm",
        "scaled_dot_product_attention",
        "selu",
        "silu",
        "softmax",
        "softplus",
    ]
)


def attention(node: Any, importer: Any) -> relax.Var:
    """``softmax(Q K^T * scale + mask) V`` over [..., heads, tokens, width], in the operators that have gradient rules.

    A boolean mask keeps where it is True; a row that it masks completely gives zeros, as in PyTorch. With
    ``enable_gqa`` several query heads share a key and value head, which broadcasts instead of being copied.
    """
    arguments = (
        dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), node.args, strict=False))
        | node.kwargs
    )
    emit = importer.block_builder.emit
    query, key, value = (importer.env[arguments[name]] for name in ("query", "key", "value"))
    if arguments.get("dropout_p"):
        raise ValueError("attention with dropout: export the model in eval mode")
    scale = arguments.get("scale") or 1 / math.sqrt(shape_of(query)[-1])
    mask = _mask(importer, arguments.get("attn_mask"))
    if arguments.get("is_causal"):
        tokens = (shape_of(query)[-2], shape_of(key)[-2])
        mask = relax.const(np.tril(np.ones(tokens, "bool")), "bool")

    *batch, heads, length, width = shape_of(query)
    shared = shape_of(key)[-3] if len(shape_of(key)) > 2 else heads
    grouped = arguments.get("enable_gqa") and shared != heads
    if grouped:
        query = emit(R.reshape(query, (*batch, shared, heads // shared, length, width)))
        key, value = (emit(R.expand_dims(tensor, -3)) for tensor in (key, value))
        if mask is not None and len(shape_of(mask)) > 2:
            mask = (
                emit(R.expand_dims(mask, -3))
                if shape_of(mask)[-3] == 1
                else emit(R.reshape(mask, (*shape_of(mask)[:-3], shared, heads // shared, *shape_of(mask)[-2:])))
            )
    # The scale goes to the query: it is smaller than the scores.
    scores = emit(matmul(emit(query * scalar(scale, query)), key, transpose_a=False, transpose_b=True))
    result = emit(matmul(_probabilities(emit, scores, mask), value, transpose_a=False, transpose_b=False))
    return emit(R.reshape(result, (*batch, heads, length, shape_of(value)[-1]))) if grouped else result


def _mask(importer: Any, node: Any) -> relax.Expr | None:
    """The mask before it was broadcast, which the scores do themselves; None for one that masks nothing."""
    if node is None:
        return None
    mask = importer.env[node]
    made: Any = importer.block_builder.lookup_binding(mask) if isinstance(mask, relax.Var) else None
    if op_name(made) == "relax.broadcast_to" and len(shape_of(made.args[0])) == len(shape_of(mask)):
        mask = made.args[0]
    return mask


def _probabilities(emit: Any, scores: relax.Var, mask: relax.Expr | None) -> relax.Var:
    if mask is None:
        return emit(R.nn.softmax(scores))
    if is_float(mask):
        return emit(R.nn.softmax(emit(scores + mask)))
    lowest, zero = scalar(float(np.finfo(scores.ty.dtype.dtype).min), scores), scalar(0, scores)
    masked = emit(R.nn.softmax(emit(R.where(mask, scores, lowest))))
    known = constant_value(mask)
    if known is not None and known.any(axis=-1).all():
        return masked
    return emit(R.where(mask, masked, zero))


def clamp_activation(node: Any, importer: Any) -> relax.Var:
    """Hardtanh and ReLU6: unlike clamp, they have no gradient at the two ends."""
    arguments = dict(zip(("input", "min_val", "max_val"), node.args, strict=False)) | node.kwargs
    relu6 = node.target.__name__.startswith("relu6")
    low, high = (0.0, 6.0) if relu6 else (float(arguments.get("min_val", -1)), float(arguments.get("max_val", 1)))
    return importer.block_builder.emit(hardtanh(importer.env[arguments["input"]], low=low, high=high))


def clamp(node: Any, importer: Any) -> relax.Var:
    """``min(max(x, low), high)`` with numbers as bounds; a bound that is missing is the largest number of its type."""
    arguments = dict(zip(("input", "min", "max"), node.args, strict=False)) | node.kwargs
    x = importer.env[arguments["input"]]
    limits = np.finfo(dtype_of(x)) if is_float(x) else np.iinfo(dtype_of(x))
    low, high = arguments.get("min"), arguments.get("max")
    low = limits.min if low is None else max(low, limits.min)
    high = limits.max if high is None else min(high, limits.max)
    number = float if is_float(x) else int
    return importer.block_builder.emit(R.clip(x, number(low), number(high)))


def extremum(operator: Callable[..., relax.Expr]) -> Callable[[Any, Any], relax.Var]:
    """The largest or smallest value over some axes."""

    def convert(node: Any, importer: Any) -> relax.Var:
        arguments = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
        axes = arguments.get("dim") or None
        x = importer.env[arguments["input"]]
        return importer.block_builder.emit(operator(x, axes, bool(arguments.get("keepdim"))))

    return convert


def rms_norm(node: Any, importer: Any) -> relax.Var:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axes."""
    arguments = dict(zip(("input", "normalized_shape", "weight", "eps"), node.args, strict=False)) | node.kwargs
    x = importer.env[arguments["input"]]
    rank, normalized = len(shape_of(x)), len(arguments["normalized_shape"])
    epsilon = arguments.get("eps")
    epsilon = float(np.finfo(dtype_of(x)).eps) if epsilon is None else epsilon
    emit = importer.block_builder.emit
    y = emit(normalize(x, axes=list(range(rank - normalized, rank)), epsilon=epsilon, center=False))
    weight = arguments.get("weight")
    return y if weight is None else emit(y * importer.env[weight])


def detach(node: Any, importer: Any) -> relax.Var:
    """The same values, but no gradient passes."""
    x = importer.env[node.args[0]]
    return importer.block_builder.emit(R.grad.no_grad(x)) if is_float(x) else x


CONVERTERS = {
    "scaled_dot_product_attention.default": attention,
    **dict.fromkeys(("hardtanh.default", "hardtanh_.default", "relu6.default", "relu6_.default"), clamp_activation),
    "amax.default": extremum(R.max),
    "amin.default": extremum(R.min),
    "clamp.default": clamp,
    "clamp_min.default": clamp,
    "rms_norm.default": rms_norm,
    "detach.default": detach,
    "detach_.default": detach,
}
