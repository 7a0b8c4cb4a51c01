"""Positions of elements in order."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from .functions import is_float, isnan, negated


def argsort(x: te.Tensor, *, axis: int, descending: bool, count: int) -> te.Tensor:
    """Return the int64 positions along ``axis`` of the first ``count`` elements in order; equal ones keep theirs.

    NaN is greater than all numbers, as in PyTorch. An element's place is the number of those before it, so work grows
    with the square of the axis, and no element waits for another.
    """
    extent = int(x.shape[axis])
    other, of = te.reduce_axis((0, extent), name="other"), te.reduce_axis((0, extent), name="of")

    def along(at: Sequence[tirx.Expr], place: tirx.Expr) -> list[tirx.Expr]:
        return [*at[:axis], place, *at[axis + 1 :]]

    def place(*at: tirx.Var) -> tirx.Expr:
        mine, theirs = x(*at), x(*along(at, other))
        first, second = (mine, theirs) if descending else (theirs, mine)
        is_before = tirx.any(_less(first, second), tirx.all(other < at[axis], negated(_less(second, first))))
        return te.sum(tirx.Select(is_before, tirx.const(1, "int32"), tirx.const(0, "int32")), axis=other)

    places = te.compute(x.shape, place, name="places")

    def found(*at: tirx.Var) -> tirx.Expr:
        is_there = places(*along(at, of)) == tirx.Cast("int32", at[axis])
        return te.sum(tirx.Select(is_there, tirx.Cast("int64", of), tirx.const(0, "int64")), axis=of)

    return te.compute([count if at == axis else extent for at, extent in enumerate(x.shape)], found, name="argsort")


def _less(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    if not is_float(a):
        return a < b
    return tirx.any(a < b, tirx.all(isnan(b), negated(isnan(a))))
