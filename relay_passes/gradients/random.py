"""Dropout."""

from __future__ import annotations

from ..ir import Expr
from ..operators.random import drop
from .registry import Use, gradient


@gradient("pock.drop")
def dropped(use: Use) -> Expr:
    """y = scale * x + shift where kept, else a constant: dx = scale * dy where kept, else 0."""
    scale = float(use.call.attrs["scale"])
    return drop(use.grad, use.args[1], scale=scale, shift=0.0, other=0.0, expected=1.0)
