"""Attention as one operator, and its gradients. Their definitions are in ``schedules/kernels/attention.py``.

``masks`` is a tuple of any number of masks.
"""

from __future__ import annotations

from tvm import relax

from schedules.kernels import attention as kernels
from schedules.kernels.matmul import broadcast_shape

from ..ir import Expr, bindings_of, dtype_of, op_name, shape_of
from .registry import register_operator


def _broadcast(*operands: Expr) -> tuple[int, ...]:
    """Return the leading axes of operands [.., rows, columns], broadcast."""
    batch: tuple[int, ...] = ()
    for operand in operands:
        batch = broadcast_shape(list(batch), list(shape_of(operand)[:-2]))
    return batch


def uses_attention(func: relax.Function) -> bool:
    """Return whether a function has attention as one operator."""
    return any(op_name(binding.value).startswith("pock.attention") for binding in bindings_of(func))


def _attention_type(call: relax.Call) -> relax.TupleType:
    q, k, v, masks = call.args
    rows = (*_broadcast(q, k, v, *masks.fields), shape_of(q)[-2])
    result = relax.TensorType((*rows, shape_of(v)[-1]), dtype_of(q))
    return relax.TupleType([result, relax.TensorType((*rows, 2), kernels.sums_of(dtype_of(q)))])


def _query_gradient_type(call: relax.Call) -> relax.TensorType:
    q, k, v, masks, *_ = call.args
    return relax.TensorType((*_broadcast(q, k, v, *masks.fields), *shape_of(q)[-2:]), dtype_of(q))


def _key_gradient_type(call: relax.Call) -> relax.TensorType:
    q, k, v, masks, *_ = call.args
    return relax.TensorType((*_broadcast(q, k, v, *masks.fields), *shape_of(k)[-2:]), dtype_of(k))


def _value_gradient_type(call: relax.Call) -> relax.TensorType:
    q, k, masks, _, grad = call.args
    batch = _broadcast(q, k, grad, *masks.fields)
    return relax.TensorType((*batch, shape_of(k)[-2], shape_of(grad)[-1]), dtype_of(grad))


def _gradients_type(call: relax.Call) -> relax.TupleType:
    q, k, v, masks, *_ = call.args
    batch = _broadcast(q, k, v, *masks.fields)
    return relax.TupleType([relax.TensorType((*batch, *shape_of(each)[-2:]), dtype_of(each)) for each in (q, k, v)])


attention = register_operator(
    "pock.attention", ["q", "k", "v", "masks"], _attention_type, kernels.attention, fuses=False
)
attention_query_gradient = register_operator(
    "pock.attention_query_gradient",
    ["q", "k", "v", "masks", "statistics", "grad", "along"],
    _query_gradient_type,
    kernels.attention_query_gradient,
    fuses=False,
)
attention_key_gradient = register_operator(
    "pock.attention_key_gradient",
    ["q", "k", "v", "masks", "statistics", "grad", "along"],
    _key_gradient_type,
    kernels.attention_key_gradient,
    fuses=False,
)
attention_value_gradient = register_operator(
    "pock.attention_value_gradient",
    ["q", "k", "masks", "statistics", "grad"],
    _value_gradient_type,
    kernels.attention_value_gradient,
    fuses=False,
)
attention_gradients = register_operator(
    "pock.attention_gradients",
    ["q", "k", "v", "masks", "statistics", "grad"],
    _gradients_type,
    kernels.attention_gradients,
    fuses=False,
)
