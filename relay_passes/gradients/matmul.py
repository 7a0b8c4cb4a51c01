"""Matrix products."""

from __future__ import annotations

import math

from tvm import relax
from tvm.relax import op as R

from schedules.kernels.matmul import broadcast_shape

from ..errors import PassError
from ..ir import Expr, op_name, shape_of
from ..operators.training import gather_channels, matmul
from .broadcasting import sum_to
from .registry import Use, gradient


def _transposes(call: relax.Call) -> tuple[bool, bool]:
    if op_name(call) == "relax.matmul":
        return False, False
    return bool(call.attrs["transpose_a"]), bool(call.attrs["transpose_b"])


def _summed_over_batch(product: Expr, shape: tuple[int, ...], other: tuple[int, ...]) -> Expr:
    """Sum a product over the leading axes along which an operand of a shape was broadcast to the other one's."""
    batch = broadcast_shape(list(shape[:-2]), list(other[:-2]))
    return sum_to(product, (*batch, *shape[-2:]), shape)


@gradient("relax.matmul", 0)
@gradient("pock.matmul", 0)
def matmul_left(use: Use) -> Expr:
    """C = A B: dA = dC B^T (and B dC^T for a transposed A)."""
    transpose_a, transpose_b = _transposes(use.call)
    b = use.args[1]
    if transpose_a:
        product = matmul(b, use.grad, transpose_a=transpose_b, transpose_b=True)
    else:
        product = matmul(use.grad, b, transpose_a=False, transpose_b=not transpose_b)
    return _summed_over_batch(product, shape_of(use.args[0]), shape_of(b))


@gradient("relax.matmul", 1, pieces=True)
@gradient("pock.matmul", 1, pieces=True)
def matmul_right(use: Use) -> Expr:
    """C = A B: dB = A^T dC (and dC^T A for a transposed B).

    Where B has no batch axes, those of A and dC are flattened into rows: the weight gradient of a linear layer. A
    trained part of B along the reduction axis is a set of input channels: only those columns of A are read and saved.
    """
    transpose_a, transpose_b = _transposes(use.call)
    a, grad = use.args[0], use.grad
    shape_a, shape_b = shape_of(a), shape_of(use.args[1])
    if use.piece is not None:
        reduced_axis = len(shape_b) - (1 if transpose_b else 2)
        if use.piece.axis != reduced_axis:
            raise PassError(
                f"a weight of 'pock.matmul' is trained in part along its reduced axis {reduced_axis}, not "
                f"{use.piece.axis}"
            )
        axis = len(shape_a) - (2 if transpose_a else 1)
        a = gather_channels(a, relax.const(list(use.piece.indices), "int32"), axis=axis)
        shape_a = (*shape_a[:axis], len(use.piece.indices), *shape_a[axis + 1 :])
        shape_b = (*shape_b[:reduced_axis], len(use.piece.indices), *shape_b[reduced_axis + 1 :])
    if len(shape_b) == 2 and len(shape_a) > 2 and not transpose_a:
        rows = math.prod(shape_a[:-1])
        a = R.reshape(a, (rows, shape_a[-1]))
        grad = R.reshape(grad, (rows, shape_of(use.result)[-1]))
        shape_a = shape_a[-2:]
    if transpose_b:
        product = matmul(grad, a, transpose_a=True, transpose_b=transpose_a)
    else:
        product = matmul(a, grad, transpose_a=not transpose_a, transpose_b=False)
    return product if len(shape_a) == 2 == len(shape_b) else _summed_over_batch(product, shape_b, shape_a)


@gradient("relax.einsum")
def einsum(use: Use) -> Expr:
    """y = products summed over indices: dx = dy times the other operands, summed over the indices that x lacks."""
    operands = list(use.args[0].fields)
    subscripts = str(use.call.attrs.subscripts).replace(" ", "")
    inputs, arrow, result = subscripts.partition("->")
    terms = inputs.split(",")
    if not arrow or "." in subscripts or any(len(set(term)) < len(term) for term in terms):
        raise PassError(f"the gradient of '{subscripts}' is not known, only where all indices are written, once a term")
    position = 0 if use.field is None else use.field
    own, shape = terms[position], shape_of(operands[position])
    others = [(term, operand) for at, (term, operand) in enumerate(zip(terms, operands, strict=True)) if at != position]
    factors = [(result, use.grad), *others] if result else others
    kept = "".join(index for index in own if any(index in term for term, _ in factors))
    product = use.grad
    if factors:
        given = ",".join(term for term, _ in factors)
        product = R.einsum([operand for _, operand in factors], f"{given}->{kept}")
        product = product if result else product * use.grad
    if kept == own:
        return product
    broadcast = [extent if index in kept else 1 for index, extent in zip(own, shape, strict=True)]
    return R.broadcast_to(R.reshape(product, broadcast), shape)
