"""Legalises operators whose TVM kernels lose NaN or infinities, or round differently from PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, tirx, topi
from tvm.relax.transform.legalize_ops import binary, nn

from schedules.kernels import elementwise, pooling, reduction

from ..ir import Expr, constant_value, dtype_of, is_float, normalized_axes, shape_of
from ..operators.registry import plain
from .legalization import Legalize, call_kernel, legalizes


def _each(kernel: Callable[..., Any], *attributes: str) -> Legalize:
    """Legalise by a kernel of one operand and the named attributes of the call."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        return call_kernel(
            builder, kernel, call.args[0], **{name: plain(getattr(call.attrs, name)) for name in attributes}
        )

    return legalize


def _pairs(kernel: Callable[..., Any]) -> Legalize:
    """Legalise by a kernel of two operands, one of which may be a scalar constant."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        a, b = call.args
        number = _number(b)
        if number is not None:
            return call_kernel(builder, kernel, a, number)
        return call_kernel(builder, kernel, a if _number(a) is None else _number(a), b)

    return legalize


def _number(expr: Expr) -> tirx.Expr | None:
    """Return a scalar constant, or None for any other expression."""
    value = constant_value(expr)
    return tirx.const(value.item(), dtype_of(expr)) if value is not None and value.shape == () else None


@legalizes("relax.clip")
def _clip(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, low, high = call.args
    return call_kernel(builder, elementwise.hardtanh, x, low=plain(low.value), high=plain(high.value))


@legalizes("relax.equal")
def _equal(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower ``x == x``, which is false for NaN, to a NaN test: TVM would simplify it to true."""
    a, b = call.args
    if is_float(a) and a.same_as(b):
        return call_kernel(builder, elementwise.logical_not, builder.emit(call_kernel(builder, elementwise.isnan, a)))
    return binary._binary(topi.equal)(builder, call)


@legalizes("relax.subtract")
def _subtract(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    if is_float(call):
        return _pairs(elementwise.subtract)(builder, call)
    return binary._binary(topi.subtract)(builder, call)


@legalizes("relax.multiply")
def _multiply(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    for x, factor in (call.args, list(call.args)[::-1]):
        number = _number(factor)
        if is_float(call) and number is not None and number.value == 0:
            return call_kernel(builder, elementwise.times_zero, x)
    return binary._binary(topi.multiply)(builder, call)


def _reduction(kernel: Callable[..., Any]) -> Legalize:
    """Legalise by a kernel that reduces some axes."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        axes = plain(call.attrs.axis)
        axes = normalized_axes([axes] if isinstance(axes, int) else axes, len(shape_of(call.args[0])))
        return call_kernel(builder, kernel, call.args[0], axes=axes, keepdims=bool(call.attrs.keepdims))

    return legalize


@legalizes("relax.nn.max_pool2d")
def _max_pool2d(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = call.attrs
    if attrs.layout != "NHWC" or attrs.out_layout not in ("", "NHWC"):
        return nn._nn_max_pool2d(builder, call)
    window = {name: plain(getattr(attrs, name)) for name in ("pool_size", "strides", "padding", "dilation")}
    return call_kernel(builder, pooling.max_pool2d, call.args[0], **window, out_size=shape_of(call)[1:3])


for _name, _legalize in {
    "nn.selu": _each(elementwise.selu),
    "nn.softplus": _each(elementwise.softplus, "beta", "threshold"),
    "nn.relu": _each(elementwise.relu),
    "maximum": _pairs(elementwise.maximum),
    "minimum": _pairs(elementwise.minimum),
    "max": _reduction(reduction.largest),
    "min": _reduction(reduction.smallest),
    "variance": _reduction(reduction.variance),
    "std": _reduction(reduction.std),
    "argmax": _reduction(reduction.argmax),
    "argmin": _reduction(reduction.argmin),
    "isnan": _each(elementwise.isnan),
    "isinf": _each(elementwise.isinf),
    "isfinite": _each(elementwise.isfinite),
    "not_equal": _pairs(elementwise.not_equal),
    "logical_not": _each(elementwise.logical_not),
    "power": _pairs(elementwise.power),
}.items():
    legalizes(f"relax.{_name}")(_legalize)
