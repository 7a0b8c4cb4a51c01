"""The transpose of broadcasting: a sum over the broadcast axes."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.relax import op as R

from ..ir import Expr, shape_of
from .registry import Use


def sum_to(grad: Expr, have: Sequence[int], want: Sequence[int]) -> Expr:
    """Sum ``grad`` of shape ``have`` over the axes along which a tensor of shape ``want`` was broadcast to it."""
    have, want = tuple(have), tuple(want)
    if have == want:
        return grad
    leading = len(have) - len(want)
    kept_ones = [axis + leading for axis, extent in enumerate(want) if extent == 1 and have[axis + leading] != 1]
    axes = list(range(leading)) + kept_ones
    if not kept_ones:
        return R.sum(grad, axis=axes)
    return R.reshape(R.sum(grad, axis=axes, keepdims=True), want)


def to_operand(use: Use, operand: int, grad: Expr) -> Expr:
    """Sum a gradient of the result's shape over the axes along which an operand was broadcast."""
    return sum_to(grad, shape_of(use.result), shape_of(use.args[operand]))
