"""Activations, as operators with gradient rules, by formulas that do not overflow."""

from __future__ import annotations

import math

import numpy as np
from tvm.relax import op as R

from relay_passes.ir import Expr, constant_value, dtype_of, is_float, scalar, shape_of
from relay_passes.operators.training import elu, hardtanh

from .registry import Node, converter, expression, refuse

RELU6 = (0.0, 6.0)
"""Bounds of a Clip that PyTorch exports for ReLU6, whose gradient at the bounds is zero, unlike clamp's."""


@converter("Relu")
def relu(node: Node, x: Expr) -> Expr:
    """``max(x, 0)``."""
    return R.nn.relu(x)


@converter("LeakyRelu")
def leaky_relu(node: Node, x: Expr, *, alpha: float) -> Expr:
    """``x`` above zero, ``alpha * x`` below."""
    return R.nn.leakyrelu(x, alpha)


@converter("PRelu")
def prelu(node: Node, x: Expr, slope: Expr) -> Expr:
    """``x`` above zero, ``slope * x`` below; slopes by channel stay a vector."""
    shape, slopes = shape_of(x), shape_of(slope)
    if len(slopes) == len(shape) - 1 and slopes[0] == shape[1] and all(extent == 1 for extent in slopes[1:]):
        return R.nn.prelu(x, node.emit(R.reshape(slope, (slopes[0],))), axis=1)
    return R.where(R.less(x, scalar(0, x)), R.multiply(x, slope), x)


@converter("Elu")
def elu_of(node: Node, x: Expr, *, alpha: float) -> Expr:
    """``x`` above zero, ``alpha * (exp(x) - 1)`` below."""
    return elu(x, alpha=alpha, scale=1.0, input_scale=1.0)


@converter("Celu")
def celu(node: Node, x: Expr, *, alpha: float) -> Expr:
    """``x`` above zero, ``alpha * (exp(x / alpha) - 1)`` below."""
    return elu(x, alpha=alpha, scale=1.0, input_scale=1 / alpha)


@converter("Selu")
def selu(node: Node, x: Expr, *, alpha: float, gamma: float) -> Expr:
    """``gamma * elu(x, alpha)``."""
    return elu(x, alpha=alpha, scale=gamma, input_scale=1.0)


@converter("Softplus")
def softplus(node: Node, x: Expr) -> Expr:
    """``log(1 + exp(x))``."""
    return R.nn.softplus(x)


@converter("Softsign")
def softsign(node: Node, x: Expr) -> Expr:
    """``x / (1 + |x|)``."""
    return R.divide(x, R.add(scalar(1, x), R.abs(x)))


@converter("HardSigmoid")
def hard_sigmoid(node: Node, x: Expr, *, alpha: float, beta: float) -> Expr:
    """``alpha * x + beta`` between 0 and 1."""
    return R.clip(node.emit(R.add(R.multiply(scalar(alpha, x), x), scalar(beta, x))), 0.0, 1.0)


@converter("HardSwish")
def hard_swish(node: Node, x: Expr) -> Expr:
    """``x * min(max(x / 6 + 0.5, 0), 1)``."""
    return R.multiply(x, R.clip(node.emit(R.add(R.multiply(scalar(1 / 6, x), x), scalar(0.5, x))), 0.0, 1.0))


@converter("Mish")
def mish(node: Node, x: Expr) -> Expr:
    """``x * tanh(softplus(x))``."""
    return R.multiply(x, R.tanh(R.nn.softplus(x)))


@converter("Swish")
def swish(node: Node, x: Expr, *, alpha: float) -> Expr:
    """``x * sigmoid(alpha * x)``."""
    return R.nn.silu(x) if alpha == 1 else R.multiply(x, R.sigmoid(R.multiply(scalar(alpha, x), x)))


@converter("Gelu")
def gelu(node: Node, x: Expr, *, approximate: str) -> Expr:
    """Convert GELU, exact or in its tanh approximation."""
    refuse(approximate not in ("none", "tanh"), f"its attribute 'approximate' is '{approximate}', not 'none' or 'tanh'")
    return R.nn.gelu(x) if approximate == "none" else R.nn.gelu_tanh(x)


@converter("ThresholdedRelu")
def thresholded_relu(node: Node, x: Expr, *, alpha: float) -> Expr:
    """``x`` above ``alpha``, else zero."""
    return R.where(R.greater(x, scalar(alpha, x)), x, scalar(0, x))


@converter("Shrink")
def shrink(node: Node, x: Expr, *, bias: float, lambd: float) -> Expr:
    """``x + bias`` below ``-lambd``, ``x - bias`` above ``lambd``, zero between."""
    refuse(not is_float(x), "it shrinks integers")
    low = R.where(R.less(x, scalar(-lambd, x)), R.add(x, scalar(bias, x)), scalar(0, x))
    return R.where(R.greater(x, scalar(lambd, x)), R.subtract(x, scalar(bias, x)), low)


@converter("Clip")
def clip(
    node: Node,
    x: Expr,
    lower: Expr | None = None,
    upper: Expr | None = None,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Expr:
    """``min(max(x, lower), upper)``; before operator set 11 the bounds are attributes."""
    bounds = [constant_value(bound) if bound is not None else None for bound in (lower, upper)]
    low, high = (bound if known is None else known for bound, known in zip((min, max), bounds, strict=True))
    unknown = any(bound is not None and known is None for bound, known in zip((lower, upper), bounds, strict=True))
    if is_float(x) and not unknown:
        low, high = (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))
        if (low, high) == RELU6:
            return hardtanh(x, low=low, high=high)
        if low <= high:
            return R.clip(x, low, high)
    for bound, number, operator in ((lower, min, R.maximum), (upper, max, R.minimum)):
        if bound is None and number is not None and abs(number) < np.finfo("float32").max:
            bound = scalar(number, x)
        x = x if bound is None else node.emit(operator(x, bound))
    return x


@converter("Softmax", "LogSoftmax", "Hardmax")
def softmax(node: Node, x: Expr, *, axis: int) -> Expr:
    """Convert a softmax along one axis; before operator set 13, over all axes from ``axis`` on."""
    operator = {"Softmax": R.nn.softmax, "LogSoftmax": R.nn.log_softmax, "Hardmax": _hardmax}[node.schema.name]
    shape = shape_of(x)
    axis %= len(shape)
    if node.version >= 13 or axis == len(shape) - 1:
        return operator(x, axis)
    flat = node.emit(R.reshape(x, (int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))))
    return R.reshape(node.emit(operator(flat, 1)), shape)


def _hardmax(x: Expr, axis: int) -> Expr:
    """Set the first maximum to one, the rest to zero."""
    extent = shape_of(x)[axis]
    along = [1] * len(shape_of(x))
    along[axis] = extent
    places = np.arange(extent, dtype="int64").reshape(along)
    return R.astype(R.equal(R.argmax(x, axis, keepdims=True), expression(places)), dtype_of(x))
