"""Indices that a model computes, for the converters of both frameworks."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, scalar

Emit = Callable[[Expr], relax.Var]


def counted_from_front(emit: Emit, index: Expr, extent: int) -> relax.Var:
    """Convert negative indices to positions from the front."""
    behind = emit(R.less(index, scalar(0, index)))
    return emit(R.where(behind, emit(R.add(index, scalar(extent, index))), index))


def where_inside(emit: Emit, index: Expr, extent: int, x: Expr, other: Expr) -> relax.Var:
    """``x`` where an index lies inside an axis, ``other`` elsewhere."""
    front, end = scalar(0, index), scalar(extent, index)
    inside = emit(R.logical_and(emit(R.greater_equal(index, front)), emit(R.less(index, end))))
    return emit(R.where(inside, x, other))


def coordinate(emit: Emit, index: Expr, extent: int, count: int) -> relax.Var:
    """A coordinate from the front, of an element among ``count``.

    Out of bounds it becomes so negative that no flat position, which it makes with others, is inside.
    """
    return where_inside(emit, index, extent, index, scalar(-count, index))
