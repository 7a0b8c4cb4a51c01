"""Normalisation and softmax."""

from __future__ import annotations

from tvm.relax import op as R

from ..ir import Expr
from ..operators.registry import attributes_of
from ..operators.training import normalize_gradient
from .registry import Use, gradient


@gradient("pock.normalize")
def normalize(use: Use) -> Expr:
    """y = (x - mean) / sqrt(var + eps): dx = (dy - mean(dy) - y * mean(dy * y)) / sqrt(var + eps)."""
    return normalize_gradient(use.args[0], use.grad, **attributes_of(use.call))


@gradient("relax.nn.softmax")
def softmax(use: Use) -> Expr:
    """y = softmax(x): dx = y * (dy - sum(dy * y))."""
    return _softmax(use, int(use.call.attrs.axis))


@gradient("pock.safe_softmax")
def safe_softmax(use: Use) -> Expr:
    """y = softmax(x), or 0 in a row of -inf: dx = y * (dy - sum(dy * y))."""
    return _softmax(use, -1)


def _softmax(use: Use, axis: int) -> Expr:
    y = use.result
    return y * (use.grad - R.sum(use.grad * y, axis=[axis], keepdims=True))


@gradient("relax.nn.log_softmax")
def log_softmax(use: Use) -> Expr:
    """y = log softmax(x): dx = dy - e^y * sum(dy)."""
    axis = [int(use.call.attrs.axis)]
    return use.grad - R.exp(use.result) * R.sum(use.grad, axis=axis, keepdims=True)
