"""Legalises products in eight bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax

from schedules.kernels import quantized

from ..operators import quantized as operators  # noqa: F401 - their records
from ..operators.registry import attributes_of
from .legalization import OUT_ELEMENTWISE_FUSABLE, Legalize, call_kernel, legalizes


def _product(kernel: Callable[..., Any]) -> Legalize:
    """Legalise by a kernel that fuses with what requantises its sums, and not with what quantises its operand."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        attrs = {"op_pattern": OUT_ELEMENTWISE_FUSABLE}
        return call_kernel(builder, kernel, *call.args, primfunc_attrs=attrs, **attributes_of(call))

    return legalize


for _kernel in (quantized.quantized_conv2d, quantized.quantized_depthwise, quantized.quantized_matmul):
    legalizes(f"pock.{_kernel.__name__}")(_product(_kernel))
