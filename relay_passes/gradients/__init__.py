"""Gradient rules, grouped by kind of operator. Importing the package fills the registry."""

from . import (
    attention,
    convolution,
    elementwise,
    indexing,
    loss,
    matmul,
    movement,
    normalization,
    pooling,
    random,
    reduction,
    resampling,
    trigonometric,
)
from .registry import Rule, Use, flat, gradient, is_flat, rule_for, supported_operators, takes_pieces

__all__ = [
    "Rule",
    "Use",
    "flat",
    "gradient",
    "is_flat",
    "rule_for",
    "supported_operators",
    "takes_pieces",
]
