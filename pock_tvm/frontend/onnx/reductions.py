"""Reductions, cumulative sums, and selection by order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, constant_value, dtype_of, is_float, op_name, scalar, shape_of

from .registry import Known, Node, converter, refuse


@converter(
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
def reduction(
    node: Node,
    x: Expr,
    reduced: Known | None = None,
    *,
    axes: Sequence[int] | None = None,
    keepdims: int,
    noop_with_empty_axes: int = 0,
) -> Expr:
    """Reduce over some axes, all by default."""
    along = [int(axis) for axis in (reduced if reduced is not None else axes or [])]
    kept = bool(keepdims)
    if not along and noop_with_empty_axes:
        return _of_each(node, x)
    if not along:
        along = list(range(len(shape_of(x))))
    if not along:
        return _of_each(node, x)
    match node.schema.name.removeprefix("Reduce"):
        case "Max":
            return _extreme(node, x, along, kept, R.max, -np.inf)
        case "Min":
            return _extreme(node, x, along, kept, R.min, np.inf)
        case "Mean":
            refuse(not is_float(x), "it takes the mean of integers; cast them to floating-point numbers before")
            return R.mean(x, along, kept)
        case "Sum":
            return R.sum(x, along, kept)
        case "Prod":
            return R.prod(x, along, kept)
        case "L1":
            return R.sum(R.abs(x), along, kept)
        case "L2":
            return _root(node, node.emit(R.sum(R.multiply(x, x), along, kept)))
        case "SumSquare":
            return R.sum(R.multiply(x, x), along, kept)
        case "LogSum":
            return R.log(R.sum(x, along, kept))
        case _:  # log-sum-exp without overflow
            largest = node.emit(R.max(x, along, keepdims=True))
            shift = node.emit(R.where(R.equal(R.abs(largest), scalar(np.inf, x)), scalar(0, x), largest))
            shift = node.emit(R.grad.no_grad(shift))
            total = node.emit(R.log(R.sum(R.exp(R.subtract(x, shift)), along, keepdims=True)))
            y = node.emit(R.add(total, shift))
            return y if kept else R.squeeze(y, along)


def _extreme(node: Node, x: Expr, along: list[int], kept: bool, operator: Callable[..., Expr], bound: float) -> Expr:
    """Take the maximum or minimum. TVM's starts from the last finite number, so rows that a mask filled with infinity
    are handled apart."""
    if dtype_of(x) == "bool":
        return R.astype(node.emit(operator(node.emit(R.astype(x, "int8")), along, kept)), "bool")
    y = operator(x, along, kept)
    if not is_float(x) or not _is_filled(node, x, bound):
        return y
    inside = R.where(R.equal(x, scalar(bound, x)), scalar(0, x), scalar(1, x))
    filled = R.equal(node.emit(R.max(inside, along, kept)), scalar(0, x))
    return R.where(filled, scalar(bound, x), y)


def _is_filled(node: Node, x: Expr, bound: float) -> bool:
    """Check whether a mask wrote infinity into a value."""
    pending = [x]
    while pending:
        value = pending.pop()
        known = constant_value(value)
        if known is not None and bool((known == bound).any()):
            return True
        made = node.builder.lookup_binding(value) if isinstance(value, relax.Var) else None
        if made is not None and op_name(made) in MASKING:
            pending.extend(made.args)
    return False


MASKING = frozenset(f"relax.{name}" for name in ("add", "broadcast_to", "minimum", "reshape", "where"))


def _root(node: Node, square: Expr) -> Expr:
    """Take the square root of a sum of squares; its gradient at zero is zero, as in PyTorch's norms."""
    refuse(not is_float(square), "it takes the norm of integers; cast them to floating-point numbers before")
    empty = node.emit(R.equal(square, scalar(0, square)))
    return R.where(empty, scalar(0, square), R.sqrt(R.where(empty, scalar(1, square), square)))


def _of_each(node: Node, x: Expr) -> Expr:
    """Reduce each element by itself (no axes)."""
    match node.schema.name.removeprefix("Reduce"):
        case "L1" | "L2":
            return R.abs(x)
        case "SumSquare":
            return R.multiply(x, x)
        case "LogSum":
            return R.log(x)
        case _:
            return x


@converter("ArgMax", "ArgMin")
def extremum(node: Node, x: Expr, *, axis: int, keepdims: int, select_last_index: int = 0) -> Expr:
    """Find the position of the first, or the last, maximum or minimum along an axis."""
    operator = R.argmax if node.schema.name == "ArgMax" else R.argmin
    if not select_last_index:
        return operator(x, axis, bool(keepdims))
    from_end = node.emit(operator(node.emit(R.flip(x, axis)), axis, bool(keepdims)))
    return R.subtract(scalar(shape_of(x)[axis] - 1, from_end), from_end)


@converter("CumSum", "CumProd")
def scan(node: Node, x: Expr, axis: Known, *, exclusive: int, reverse: int) -> Expr:
    """Compute cumulative sums or products, inclusive or exclusive; from the end with ``reverse``."""
    along = int(axis.reshape(-1)[0]) % len(shape_of(x))
    operator, neutral = (R.cumsum, 0) if node.schema.name == "CumSum" else (R.cumprod, 1)
    y = node.emit(R.flip(x, along)) if reverse else x
    total = node.emit(operator(y, along))
    if exclusive:  # shift by one: subtracting an infinite element gives NaN
        extent, widths = shape_of(x)[along], [0] * (2 * len(shape_of(x)))
        widths[2 * along] = 1
        total = node.emit(R.strided_slice(R.nn.pad(total, widths, "constant", neutral), [along], [0], [extent]))
    return R.flip(total, along) if reverse else total


@converter("TopK")
def top_k(node: Node, x: Expr, k: Known, *, axis: int, largest: int = 1, sorted: int = 1) -> list[Expr]:
    """Find the ``k`` largest or smallest values along an axis, in order, and their positions."""
    axis %= len(shape_of(x))
    refuse(dtype_of(x) in ("uint16", "uint32", "uint64"), f"it orders {dtype_of(x)}")
    positions = node.emit(R.topk(x, int(k.reshape(-1)[0]), axis, "indices", bool(largest), "int64"))
    return [R.gather_elements(x, positions, axis), positions]


@converter("LpNormalization")
def lp_normalization(node: Node, x: Expr, *, axis: int, p: int) -> Expr:
    """Divide ``x`` by its norm along an axis; zero where the norm is zero."""
    size = R.sum(R.abs(x), axis, keepdims=True) if p == 1 else R.sqrt(R.sum(R.multiply(x, x), axis, keepdims=True))
    norm = node.emit(size)
    empty = node.emit(R.equal(norm, scalar(0, x)))
    quotient = R.divide(x, R.where(empty, scalar(1, x), norm))
    return R.where(empty, scalar(0, x), quotient)
