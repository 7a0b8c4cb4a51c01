"""Losses that are single operators."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax import op as R

from ..ir import Expr, dtype_of, scalar, shape_of
from ..operators.registry import attributes_of
from ..operators.training import cross_entropy_gradient
from .registry import Use, gradient


@gradient("pock.cross_entropy")
def cross_entropy(use: Use) -> Expr:
    """l[row] = -sum target * log softmax(x): dx = (softmax(x) - target) * dl[row]."""
    logits, labels = use.args
    return cross_entropy_gradient(logits, labels, use.grad, **attributes_of(use.call))


@gradient("relax.nn.cross_entropy_with_logits", 0)
def cross_entropy_of_log_probabilities(use: Use) -> Expr:
    """l = -sum(x * y) / n, n the rows of a matrix, or 1 for a vector: dx = -y * dl / n."""
    return _shared(use, use.args[1])


@gradient("relax.nn.cross_entropy_with_logits", 1)
def cross_entropy_of_labels(use: Use) -> Expr:
    """l = -sum(x * y) / n, n the rows of a matrix, or 1 for a vector: dy = -x * dl / n."""
    return _shared(use, use.args[0])


def _shared(use: Use, other: Expr) -> Expr:
    shape = shape_of(other)
    return other * (use.grad * scalar(-1 / (shape[0] if len(shape) > 1 else 1), other))


@gradient("relax.nn.nll_loss")
def negative_log_likelihood(use: Use) -> Expr:
    """l = -w[t] x[t], or its sum, or that by the sum of w[t] (mean): dx[t] = -w[t] dl of these, 0 elsewhere. Rows of
    the label ``ignore_index`` do not count."""
    x, targets, *weights = use.args
    shape, dtype = shape_of(x), dtype_of(x)
    axis = min(1, len(shape) - 1)
    classes = [-1 if place == axis else 1 for place in range(len(shape))]
    target = R.expand_dims(targets, axis)
    ignored = relax.const(int(use.call.attrs.ignore_index), dtype_of(targets))
    places = relax.const(np.arange(shape[axis]).reshape(classes), dtype_of(targets))
    share = R.astype(R.logical_and(R.equal(places, target), R.not_equal(target, ignored)), dtype)
    if weights:
        share = share * R.reshape(weights[0], [shape[axis] if extent == -1 else 1 for extent in classes])
    reduction, grad = str(use.call.attrs.reduction), use.grad
    if reduction == "none":
        grad = R.expand_dims(grad, axis)
    elif reduction == "mean":
        grad = grad / R.sum(share)
    return R.negative(share * grad)
