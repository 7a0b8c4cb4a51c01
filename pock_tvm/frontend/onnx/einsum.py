"""Sums of products over named axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, scalar, shape_of

from .products import check_type
from .registry import Node, converter, refuse


@dataclass(frozen=True)
class _Named:
    """A tensor with a name for each axis."""

    x: Expr
    axes: tuple[str, ...]

    @property
    def extents(self) -> dict[str, int]:
        return dict(zip(self.axes, shape_of(self.x), strict=True))


@converter("Einsum")
def einsum(node: Node, *operands: Expr, equation: str) -> Expr:
    """Convert an einsum: two operands after the other are permuted, multiplied as matrices, and permuted."""
    check_type(operands[0])
    terms, result = _parsed(equation, [len(shape_of(x)) for x in operands])
    named = [_Named(x, term) for x, term in zip(operands, terms, strict=True)]
    largest: dict[str, int] = {}
    for operand in named:
        for axis, extent in operand.extents.items():
            largest[axis] = max(extent, largest.get(axis, 1))
    rest = [_without_broadcast(node, _diagonal(node, operand), largest) for operand in named]
    first = rest.pop(0)
    while rest:
        second = rest.pop(0)
        first = _product(node, first, second, {*result, *(axis for later in rest for axis in later.axes)})
    y = _in_order(node, _summed(node, first, set(result)), [axis for axis in result if axis in first.axes])
    shape = tuple(largest[axis] for axis in result)
    if len(shape_of(y)) < len(shape):  # all operands have extent 1 along an axis
        y = node.emit(R.reshape(y, shape))
    return y


def _parsed(equation: str, ranks: Sequence[int]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Return the axes of each operand and of the result; those of an ellipsis are named by their place from the end."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    refuse(len(texts) != len(ranks), f"its equation '{equation}' has not {len(ranks)} operands")
    widths = [rank - len(text.replace("...", "")) for text, rank in zip(texts, ranks, strict=True)]
    refuse(
        any(width < 0 or (width and "..." not in text) for text, width in zip(texts, widths, strict=True)),
        f"its equation '{equation}' does not name all axes",
    )
    terms = [_spelled_out(text, width) for text, width in zip(texts, widths, strict=True)]
    if arrow:
        return terms, _spelled_out(right, max(widths))
    every = [axis for term in terms for axis in term]
    letters = sorted(axis for axis in set(every) if not axis.startswith(".") and every.count(axis) == 1)
    return terms, (*_spelled_out("...", max(widths)), *letters)


def _spelled_out(text: str, width: int) -> tuple[str, ...]:
    before, dots, after = text.partition("...")
    return (*before, *(f".{place}" for place in range(width, 0, -1) if dots), *after)


def _diagonal(node: Node, operand: _Named) -> _Named:
    """Take the diagonal of axes of one name."""
    x, axes = operand.x, list(operand.axes)
    for axis in [axis for axis in dict.fromkeys(axes) if axes.count(axis) > 1]:
        while axes.count(axis) > 1:
            first = axes.index(axis)
            second = axes.index(axis, first + 1)
            shape = [extent if at in (first, second) else 1 for at, extent in enumerate(shape_of(x))]
            same = relax.const(np.eye(shape_of(x)[first], dtype="bool").reshape(shape), "bool")
            x = node.emit(R.sum(R.where(same, x, scalar(0, x)), [second]))
            del axes[second]
    return _Named(x, tuple(axes))


def _without_broadcast(node: Node, operand: _Named, largest: dict[str, int]) -> _Named:
    """Drop axes of extent 1, along which another operand is longer, or which all have."""
    kept = [axis for axis, extent in operand.extents.items() if extent > 1 or largest[axis] == extent > 1]
    if len(kept) == len(operand.axes):
        return operand
    return _Named(node.emit(R.reshape(operand.x, [operand.extents[axis] for axis in kept])), tuple(kept))


def _summed(node: Node, operand: _Named, kept: set[str]) -> _Named:
    """Sum over axes that nothing needs any more."""
    alone = [at for at, axis in enumerate(operand.axes) if axis not in kept]
    if not alone:
        return operand
    return _Named(node.emit(R.sum(operand.x, alone)), tuple(axis for axis in operand.axes if axis in kept))


def _product(node: Node, left: _Named, right: _Named, kept: set[str]) -> _Named:
    """Multiply two operands, and sum over the axes that are not kept."""
    left = _summed(node, left, kept | set(right.axes))
    right = _summed(node, right, kept | set(left.axes))
    extents = left.extents | right.extents
    batch = [axis for axis in left.axes if axis in right.axes and axis in kept]
    common = [axis for axis in left.axes if axis in right.axes and axis not in kept]
    rows = [axis for axis in left.axes if axis not in right.axes]
    columns = [axis for axis in right.axes if axis not in left.axes]

    def matrices(operand: _Named, first: Sequence[str], second: Sequence[str]) -> Expr:
        x = _in_order(node, operand, [*batch, *first, *second])
        heads = [extents[axis] for axis in batch]
        return node.emit(R.reshape(x, [*heads, *(math.prod(extents[axis] for axis in of) for of in (first, second))]))

    y = node.emit(R.matmul(matrices(left, rows, common), matrices(right, common, columns)))
    made = (*batch, *rows, *columns)
    return _Named(node.emit(R.reshape(y, [extents[axis] for axis in made])), made)


def _in_order(node: Node, operand: _Named, order: Sequence[str]) -> Expr:
    """Permute the axes of an operand."""
    if list(operand.axes) == list(order):
        return operand.x
    return node.emit(R.permute_dims(operand.x, [operand.axes.index(axis) for axis in order]))
