"""Counts multiply-accumulates of products with a weight."""

from __future__ import annotations

import math

from tvm import relax

from ..ir import Expr, shape_of
from ..operators import training  # noqa: F401 - the records of its operators
from ..operators.record import record_of, rule


def multiplies_weight(value: Expr) -> bool:
    """Return whether a value is a product whose second operand may be a weight."""
    return record_of(value).macs is not None


def macs_of(product: relax.Call) -> int:
    """Count the multiply-accumulates of a product with a weight; 0 for any other operator."""
    count = record_of(product).macs
    return count(product) if count is not None else 0


@rule("macs", "pock.matmul")
def _matmul(call: relax.Call) -> int:
    _, weight = call.args
    return math.prod(shape_of(call)) * shape_of(weight)[-1 if call.attrs["transpose_b"] else -2]


@rule("macs", "relax.nn.conv2d")
def _conv2d(call: relax.Call) -> int:
    """Count for a weight [R, S, I, O]."""
    _, weight = call.args
    return math.prod(shape_of(call)) * math.prod(shape_of(weight)[:3])


@rule("macs", "pock.conv2d_data_gradient")
def _transposed_convolution(call: relax.Call) -> int:
    """Count for a data gradient, which is a transposed convolution in a forward pass."""
    x, weight = call.args
    return math.prod(shape_of(x)) * math.prod(shape_of(weight)[:3])
