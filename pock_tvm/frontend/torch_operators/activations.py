"""Activations."""

from __future__ import annotations

import math

from tvm.relax import op as R

from relay_passes.ir import Expr, shape_of
from relay_passes.operators.training import elu, hardtanh, log1p

from .registry import Number, Result, Site, Unsupported, converter


@converter("hardtanh.default")
def hard_tanh(at: Site, x: Expr, min_val: Number = -1, max_val: Number = 1) -> Expr:
    """Convert hardtanh; unlike clamp, its gradient is zero at the bounds."""
    return at.emit(hardtanh(x, low=float(min_val), high=float(max_val)))


@converter("relu6.default")
def relu6(at: Site, x: Expr) -> Expr:
    """``min(max(x, 0), 6)``."""
    return at.emit(hardtanh(x, low=0.0, high=6.0))


@converter("hardsigmoid.default")
def hard_sigmoid(at: Site, x: Expr) -> Expr:
    """``relu6(x + 3) / 6``."""
    bounded = at.emit(hardtanh(at.emit(R.add(x, at.cast(3))), low=0.0, high=6.0))
    return at.emit(R.multiply(bounded, at.cast(1 / 6)))


@converter("hardswish.default")
def hard_swish(at: Site, x: Expr) -> Expr:
    """``x * relu6(x + 3) / 6``."""
    return at.emit(R.multiply(x, hard_sigmoid(at, x)))


@converter("gelu.default")
def gelu(at: Site, x: Expr, approximate: str = "none") -> Expr:
    """Convert GELU, exact or in its tanh approximation."""
    return at.emit((R.nn.gelu_tanh if approximate == "tanh" else R.nn.gelu)(x))


@converter("leaky_relu.default")
def leaky_relu(at: Site, x: Expr, negative_slope: Number = 0.01) -> Expr:
    """``x`` where x > 0, else ``negative_slope * x``."""
    return at.emit(R.nn.leakyrelu(x, float(negative_slope)))


@converter("rrelu.default")
def rrelu(at: Site, x: Expr, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Expr:
    """``x`` where x > 0, else the mean slope times ``x``, as PyTorch computes it in eval mode."""
    if training:
        raise Unsupported("draws its slopes in training mode, which is not supported: export it in eval mode")
    return at.emit(R.nn.leakyrelu(x, (lower + upper) / 2))


@converter("prelu.default", "_prelu_kernel.default")
def prelu(at: Site, x: Expr, weight: Expr) -> Expr:
    """``x`` where x > 0, else ``weight * x``, with one slope a channel."""
    slopes = math.prod(shape_of(weight))
    x = at.reshape(x, shape_of(x) or (1,))
    axis = 1 if len(shape_of(x)) > 1 else 0
    y = at.emit(R.nn.prelu(x, at.reshape(weight, (slopes,)), axis if slopes > 1 else len(shape_of(x)) - 1))
    return at.reshape(y, at.shape)


@converter("softplus.default")
def softplus(at: Site, x: Expr, beta: Number = 1, threshold: Number = 20) -> Expr:
    """``log(1 + e^(beta x)) / beta``, and ``x`` where ``beta x > threshold``."""
    return at.emit(R.nn.softplus(x, float(beta), float(threshold)))


@converter("elu.default")
def elu_of(at: Site, x: Expr, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> Expr:
    """``scale * x`` where x > 0, else ``scale * alpha * (e^(input_scale x) - 1)``."""
    return at.emit(elu(x, alpha=float(alpha), scale=float(scale), input_scale=float(input_scale)))


@converter("celu.default")
def celu(at: Site, x: Expr, alpha: Number = 1.0) -> Expr:
    """``x`` where x > 0, else ``alpha * (e^(x / alpha) - 1)``."""
    return elu_of(at, x, alpha, 1, 1 / alpha)


@converter("log_sigmoid.default", "log_sigmoid_forward.default")
def log_sigmoid(at: Site, x: Expr) -> Result:
    """``-log(1 + e^-x)``, as ``min(x, 0) - log(1 + e^-|x|)``."""
    smaller = at.emit(R.minimum(x, at.cast(0)))
    tail = at.emit(R.exp(at.emit(R.negative(at.emit(R.abs(x))))))
    y = at.emit(R.subtract(smaller, at.emit(log1p(tail))))
    return [y, None] if len(at.types) > 1 else y
