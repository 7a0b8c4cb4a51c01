"""Operators that move elements without changing them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import relax
from tvm.relax import op as R

from ..errors import PassError
from ..ir import Expr, dtype_of, normalized_axes, shape_of, slice_bounds
from ..operators.registry import plain
from .broadcasting import to_operand
from .registry import Use, gradient


def _in_shape_of_operand(use: Use) -> Expr:
    return R.reshape(use.grad, shape_of(use.args[0]))


@gradient("relax.reshape")
def reshape(use: Use) -> Expr:
    """y = reshape(x): dx = reshape(dy)."""
    return _in_shape_of_operand(use)


@gradient("relax.flatten")
def flatten(use: Use) -> Expr:
    """y = flatten(x): dx = reshape(dy)."""
    return _in_shape_of_operand(use)


@gradient("relax.expand_dims")
def expand_dims(use: Use) -> Expr:
    """y = x with axes of extent 1 added: dx = reshape(dy)."""
    return _in_shape_of_operand(use)


@gradient("relax.squeeze")
def squeeze(use: Use) -> Expr:
    """y = x with axes of extent 1 removed: dx = reshape(dy)."""
    return _in_shape_of_operand(use)


@gradient("relax.permute_dims")
def permute_dims(use: Use) -> Expr:
    """y = x with its axes permuted: dx = dy with them permuted back."""
    rank = len(shape_of(use.args[0]))
    axes = plain(use.call.attrs.axes)
    axes = [axis % rank for axis in axes] if axes is not None else list(reversed(range(rank)))
    return R.permute_dims(use.grad, [axes.index(axis) for axis in range(rank)])


@gradient("relax.broadcast_to")
def broadcast_to(use: Use) -> Expr:
    """y = x broadcast: dx = the sum of dy over the broadcast axes."""
    return to_operand(use, 0, use.grad)


@gradient("relax.concat")
def concat(use: Use) -> Expr:
    """y = [x0, x1, …]: dx_i = the slice of dy at x_i."""
    parts = use.args[0].fields
    axis = (plain(use.call.attrs.axis) or 0) % len(shape_of(use.result))
    start = sum(shape_of(part)[axis] for part in parts[: use.field])
    return R.strided_slice(use.grad, [axis], [start], [start + shape_of(parts[use.field])[axis]])


@gradient("relax.stack")
def stack(use: Use) -> Expr:
    """y = stack(x0, x1, …): dx_i = the slice of dy at x_i."""
    axis = (plain(use.call.attrs.axis) or 0) % len(shape_of(use.result))
    field = use.field or 0
    part = R.strided_slice(use.grad, [axis], [field], [field + 1])
    return R.reshape(part, shape_of(use.args[0].fields[field]))


@gradient("relax.split")
def split(use: Use) -> Expr:
    """(y0, y1, …) = x in parts: dx = [dy0, dy1, …], zero for a part that nothing reads."""
    parts = use.result.ty.fields
    grads = [
        R.zeros(relax.ShapeExpr([int(extent) for extent in part.shape]), dtype_of(use.args[0]))
        if grad is None
        else grad
        for part, grad in zip(parts, use.grad, strict=True)
    ]
    return R.concat(grads, axis=int(use.call.attrs.axis))


@gradient("relax.strided_slice")
def strided_slice(use: Use) -> Expr:
    """y = x[begin : end : stride]: dx = dy at the elements that were read, zero elsewhere."""
    x, grad = use.args[0], use.grad
    shape = shape_of(x)
    axes, begins, _, strides = slice_bounds(use.args)
    taken = list(shape_of(use.result))
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, begin, stride in zip(axes, begins, strides, strict=True):
        axis %= len(shape)
        if stride < 0:
            raise PassError("a slice with a negative stride has no gradient rule; use flip")
        begin = min(max(begin + shape[axis] if begin < 0 else begin, 0), shape[axis])
        if stride > 1:
            grad, taken[axis] = _insert_zeros(grad, taken, axis, stride)
        surplus = begin + taken[axis] - shape[axis]
        if surplus > 0:
            grad = R.strided_slice(grad, [axis], [0], [taken[axis] - surplus])
            taken[axis] -= surplus
        before[axis], after[axis] = begin, shape[axis] - begin - taken[axis]
    return _pad(grad, before, after)


def _insert_zeros(x: Expr, shape: Sequence[int], axis: int, stride: int) -> tuple[Expr, int]:
    """Insert ``stride - 1`` zeros after each element along ``axis``."""
    expanded = [*shape[: axis + 1], 1, *shape[axis + 1 :]]
    after = [0] * len(expanded)
    after[axis + 1] = stride - 1
    extent = shape[axis] * stride
    padded = _pad(R.reshape(x, expanded), [0] * len(expanded), after)
    return R.reshape(padded, [*shape[:axis], extent, *shape[axis + 1 :]]), extent


def _pad(x: Expr, before: Sequence[int], after: Sequence[int]) -> Expr:
    if not any(before) and not any(after):
        return x
    return R.nn.pad(x, [width for pair in zip(before, after, strict=True) for width in pair])


@gradient("relax.nn.pad")
def pad(use: Use) -> Expr:
    """y = x padded by a constant: dx = dy cropped. A negative width crops x: dx = dy padded by zeros."""
    if use.call.attrs.pad_mode != "constant":
        raise PassError(f"padding in mode '{use.call.attrs.pad_mode}' has no gradient rule, only 'constant'")
    shape, widths = shape_of(use.args[0]), plain(use.call.attrs.pad_width)
    before, after = widths[0::2], widths[1::2]
    padded = shape_of(use.result)
    begin = [max(width, 0) for width in before]
    end = [extent - max(width, 0) for extent, width in zip(padded, after, strict=True)]
    inner = R.strided_slice(use.grad, list(range(len(shape))), begin, end)
    return _pad(inner, [max(-width, 0) for width in before], [max(-width, 0) for width in after])


@gradient("relax.flip")
def flip(use: Use) -> Expr:
    """y = x reversed along an axis: dx = dy reversed."""
    return R.flip(use.grad, int(use.call.attrs.axis))


@gradient("relax.tile")
def tile(use: Use) -> Expr:
    """y = copies of x side by side: dx = the sum of dy over the copies."""
    shape, repeats = shape_of(use.args[0]), list(plain(use.call.attrs.repeats))
    rank = max(len(shape), len(repeats))
    shape = (1,) * (rank - len(shape)) + shape
    repeats = [1] * (rank - len(repeats)) + repeats
    copies = R.reshape(use.grad, [extent for pair in zip(repeats, shape, strict=True) for extent in pair])
    return R.reshape(R.sum(copies, axis=list(range(0, 2 * rank, 2))), shape_of(use.args[0]))


@gradient("relax.repeat")
def repeat(use: Use) -> Expr:
    """y = each element of x repeated along an axis: dx = the sum of dy over the copies."""
    shape, times, axis = shape_of(use.args[0]), int(use.call.attrs.repeats), plain(use.call.attrs.axis)
    if axis is None:
        return R.reshape(R.sum(R.reshape(use.grad, (math.prod(shape), times)), axis=[1]), shape)
    (axis,) = normalized_axes([axis], len(shape))
    copies = R.reshape(use.grad, [*shape[: axis + 1], times, *shape[axis + 1 :]])
    return R.sum(copies, axis=[axis + 1])


@gradient("relax.tril")
def tril(use: Use) -> Expr:
    """y = the lower triangle of x: dx = the lower triangle of dy."""
    return R.tril(use.grad, use.args[1])


@gradient("relax.triu")
def triu(use: Use) -> Expr:
    """y = the upper triangle of x: dx = the upper triangle of dy."""
    return R.triu(use.grad, use.args[1])
