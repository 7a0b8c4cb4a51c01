"""Scaled dot-product attention."""

from __future__ import annotations

from typing import Any

from tvm import relax
from tvm.relax import op as R

from schedules.kernels.attention import sums_of

from ..ir import Expr, dtype_of, shape_of
from ..operators.attention import attention_key_gradient, attention_query_gradient, attention_value_gradient
from ..operators.registry import attributes_of
from .broadcasting import sum_to
from .registry import Use, gradient


@gradient("pock.attention", 0)
def attention_query(use: Use) -> Expr:
    """S = mask(Q K^T * scale), P = softmax(S), O = P V: dQ = dS K * scale with dS = P * (dO V^T - sum(dO * O))."""
    product = attention_query_gradient(*use.args, _statistics(use), _grad(use), _along(use), **_options(use))
    return _to_operand(use, 0, product)


@gradient("pock.attention", 1)
def attention_key(use: Use) -> Expr:
    """S = mask(Q K^T * scale), P = softmax(S), O = P V: dK = dS^T Q * scale with dS = P * (dO V^T - sum(dO * O))."""
    product = attention_key_gradient(*use.args, _statistics(use), _grad(use), _along(use), **_options(use))
    return _to_operand(use, 1, product)


@gradient("pock.attention", 2)
def attention_value(use: Use) -> Expr:
    """S = mask(Q K^T * scale), P = softmax(S), O = P V: dV = P^T dO."""
    q, k, _, masks = use.args
    product = attention_value_gradient(q, k, masks, _statistics(use), _grad(use), **_options(use))
    return _to_operand(use, 2, product)


def _grad(use: Use) -> Expr:
    return use.grad[0]  # nothing reads the statistics but these rules


def _statistics(use: Use) -> Expr:
    return relax.TupleGetItem(use.result, 1)


def _along(use: Use) -> Expr:
    """The sum over j of P_ij dP_ij, which the softmax's gradient subtracts: sum(dO * O), since dP = dO V^T."""
    grad, result = _grad(use), relax.TupleGetItem(use.result, 0)
    sums = sums_of(dtype_of(grad))
    if dtype_of(grad) != sums:
        grad, result = R.astype(grad, sums), R.astype(result, sums)
    return R.sum(grad * result, axis=[-1])


def _options(use: Use) -> dict[str, Any]:
    return {name: value for name, value in attributes_of(use.call).items() if name != "safe"}


def _to_operand(use: Use, operand: int, product: Expr) -> Expr:
    """Sum a gradient over the leading axes along which its operand was broadcast."""
    shape = shape_of(use.args[operand])
    batch = shape_of(_grad(use))[:-2]
    return sum_to(product, (*batch, *shape[-2:]), shape)
