"""Remainders of divisions, for the converters of both frameworks."""

from __future__ import annotations

from tvm.relax import op as R

from relay_passes.ir import Expr, dtype_of, is_float, scalar

from .indices import Emit


def signed_as_dividend(emit: Emit, x: Expr, y: Expr) -> Expr:
    """``x - trunc(x / y) * y``; x for an infinite y."""
    zero = scalar(0, x)
    if is_float(x):
        whole = emit(R.trunc(emit(R.divide(x, y))))
        product = emit(R.where(emit(R.equal(whole, zero)), zero, emit(R.multiply(whole, y))))
        return emit(R.subtract(x, product))
    rest = emit(R.floor_mod(x, y))
    if dtype_of(x).startswith("u"):
        return rest
    return emit(R.where(_signs_differ(emit, rest, x), emit(R.subtract(rest, y)), rest))


def signed_as_divisor(emit: Emit, x: Expr, y: Expr) -> Expr:
    """``x - floor(x / y) * y``."""
    if not is_float(x):
        return emit(R.floor_mod(x, y))
    rest = signed_as_dividend(emit, x, y)
    return emit(R.where(_signs_differ(emit, rest, y), emit(R.add(rest, y)), rest))


def _signs_differ(emit: Emit, x: Expr, y: Expr) -> Expr:
    """Whether x is not zero, and has another sign than y."""
    zero = scalar(0, x)
    differ = emit(R.logical_xor(emit(R.less(x, zero)), emit(R.less(y, zero))))
    return emit(R.logical_and(differ, emit(R.not_equal(x, zero))))
