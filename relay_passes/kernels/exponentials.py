"""Kernels of exponentials, softmax and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, te, topi

from schedules.kernels import functions

from ..ir import dtype_of, shape_of
from ..operators.registry import plain
from .legalization import Legalize, call_kernel, legalizes


@legalizes("relax.nn.softmax")
def _softmax(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    (x,) = call.args
    if int(call.attrs.axis) not in (-1, len(shape_of(x)) - 1):
        return relax.transform.legalize_ops.nn._nn_softmax(builder, call)
    return call_kernel(builder, functions.softmax, x)


def _function(function: Callable[[Any], Any]) -> Legalize:
    def kernel(x: te.Tensor) -> te.Tensor:
        return functions.elementwise(x, function)

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        return builder.call_te(kernel, call.args[0], primfunc_name_hint=function.__name__)

    return legalize


def _scan(kernel: Callable[..., Any]) -> Legalize:
    """Legalise a scan (running sum or product) along an axis, or over all elements without one."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        axis, exclusive = plain(call.attrs.axis), bool(call.attrs.exclusive)
        return call_kernel(builder, kernel, *call.args, axis=axis, dtype=dtype_of(call), exclusive=exclusive)

    return legalize


for _name, _legalize in {
    "cumsum": _scan(topi.cumsum),
    "cumprod": _scan(topi.cumprod),
    "exp": _function(functions.exp),
    "erf": _function(functions.erf),
    "tanh": _function(functions.tanh),
    "sigmoid": _function(functions.sigmoid),
    "nn.silu": _function(functions.silu),
    "nn.gelu": _function(functions.gelu),
    "nn.gelu_tanh": _function(functions.gelu_tanh),
}.items():
    legalizes(f"relax.{_name}")(_legalize)
