"""Losses that are single operators."""

from __future__ import annotations

from ..ir import Expr
from ..operators.registry import attributes_of
from ..operators.training import cross_entropy_gradient
from .registry import Use, gradient


@gradient("pock.cross_entropy")
def cross_entropy(use: Use) -> Expr:
    """l[row] = -sum target * log softmax(x): dx = (softmax(x) - target) * dl[row]."""
    logits, labels = use.args
    return cross_entropy_gradient(logits, labels, use.grad, **attributes_of(use.call))
