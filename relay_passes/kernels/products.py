"""Kernels of matrix products, and of sums over rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import relax, topi

from schedules.extents import parts
from schedules.kernels import SMALL, bits, reduction
from schedules.kernels import matmul as matmul_kernels
from schedules.target import Target

from ..ir import shape_of
from ..operators.registry import attributes_of, plain
from .legalization import (
    ELEMENTWISE,
    REDUCTION,
    call_kernel,
    legalizes,
    legalizes_for_target,
    parts_of_slices,
    product,
)


def _rounded_product(
    target: Target, builder: relax.BlockBuilder, kernel: Callable[..., Any], call: relax.Call
) -> relax.Call:
    """Lower a product that computes rows to the end of the last register tile."""
    *_, rows, columns = shape_of(call)
    return product(builder, kernel, *call.args, computed_rows=target.layouts.rounded_rows(rows, columns))


@legalizes_for_target("pock.matmul")
def _matmul(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Compute columns to the end of a vector, where the target likes that, and rows to the end of a register tile."""
    a, b = call.args
    transposes = {name: bool(call.attrs[name]) for name in ("transpose_a", "transpose_b")}
    *batch, rows, columns = shape_of(call)
    height = math.prod([*batch, rows]) // math.prod(shape_of(b)[:-2])
    whole = columns if transposes["transpose_b"] else target.layouts.computed_columns(height, columns)
    computed = {"computed_rows": target.layouts.rounded_rows(rows, whole), "computed_columns": whole}
    return product(builder, matmul_kernels.matmul, a, b, **transposes, **computed)


@legalizes_for_target("pock.packed_matmul")
def _packed_matmul(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return _rounded_product(target, builder, matmul_kernels.packed_matmul, call)


@legalizes_for_target("pock.across_matmul")
def _across_matmul(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return _rounded_product(target, builder, matmul_kernels.across_matmul, call)


@legalizes("pock.unpack_bits")
def _unpack_bits(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Mark the kernel element-wise, so that it fuses with the product whose results it masks."""
    return product(builder, bits.unpack_bits, *call.args, pattern=ELEMENTWISE, **attributes_of(call))


@legalizes_for_target("relax.sum")
def _sum(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Split a sum over all axes but the channels into partial sums that run in parallel."""
    (x,), attrs = call.args, call.attrs
    shape = shape_of(x)
    axes = plain(attrs.axis)
    over_rows = axes is not None and sorted(axis % len(shape) for axis in axes) == list(range(len(shape) - 1))
    if not over_rows or len(shape) < 2 or attrs.keepdims or math.prod(shape) < SMALL:
        return call_kernel(builder, topi.sum, x, axis=axes and list(axes), keepdims=bool(attrs.keepdims))
    leading = 2 if max(shape[:2]) > 1 else len(shape)  # a 1x1 weight is split along its input channels
    want = max(4 * target.traits.cores, parts_of_slices(target, x))
    chunks = parts(shape[: min(leading, len(shape) - 1)], want)
    sums = builder.emit(product(builder, reduction.channel_sum, x, pattern=REDUCTION, chunks=chunks))
    return call_kernel(builder, topi.sum, sums, axis=list(range(len(chunks))))
