"""Registers Relax operators from Python.

Relax has no operators for the products of training (the weight gradient of a convolution, say). Those that the gradient
rules need are added here as ordinary Relax operators: they have a type rule (``FInferType``) and a legalisation
(``FLegalize``), so that every pass of TVM can handle them, and print as ``R.call`` nodes named ``pock.*``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.ir import _ffi_api

from ..errors import RegistrationError
from .record import describe

InferType = Callable[[relax.Call], Any]
Kernel = Callable[..., Any]

_REGISTERED: set[str] = set()


def register_operator(
    name: str, arguments: list[str], infer_type: InferType, kernel: Kernel, **facts: Any
) -> Callable[..., relax.Call]:
    """Register the pure operator ``name`` and return a function that makes calls of it.

    Parameters
    ----------
    name : str
        The operator's name, ``pock.…``.
    arguments : list of str
        The names of its tensor arguments; everything else is an attribute.
    infer_type : callable
        ``infer_type(call)`` gives the type of the result from ``call.args`` and ``call.attrs``.
    kernel : callable
        ``kernel(*tensors, **attributes)`` gives the result as a ``te.Tensor``: what the operator computes. A tuple
        comes as a list.
    facts
        What stands in its record (:class:`~relay_passes.operators.record.OperatorRecord`).

    Raises
    ------
    RegistrationError
        There is an operator of this name already.
    """
    if name in _REGISTERED:
        raise RegistrationError(f"there is an operator '{name}' already")
    _REGISTERED.add(name)
    describe(name, **facts)
    if name not in tvm.ir.Op.list_op_names():
        _ffi_api.RegisterOp(name, f"{name}: see relay_passes/operators")
    op = tvm.ir.Op.get(name)
    if op.get_attr("FInferType") is None:  # has_attr answers True for every name
        op.set_num_inputs(len(arguments))
        for argument in arguments:
            op.add_argument(argument, "Tensor", argument)
        op.set_attr("FPurity", True)
        op.set_attr("TScriptPrinterName", name)
        op.set_attr("FInferType", lambda call, _builder: infer_type(call))
        op.set_attr("FLegalize", lambda builder, call: _legalize(builder, call, kernel))

    def make(*tensors: relax.Expr, **attributes: Any) -> relax.Call:
        if len(tensors) != len(arguments):
            raise TypeError(f"{name} takes {len(arguments)} tensors {arguments}, not {len(tensors)}")
        return relax.Call(op, list(tensors), attributes)

    make.__name__ = name.removeprefix("pock.")
    make.__doc__ = kernel.__doc__
    return make


def attributes_of(call: relax.Call) -> dict[str, Any]:
    """The attributes of a ``pock.*`` call as plain Python values."""
    return {key: plain(value) for key, value in call.attrs.items()}


def plain(value: Any) -> Any:
    """An FFI value as a plain Python one: arrays become tuples, integer nodes integers."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return value.value
    if hasattr(value, "__iter__"):
        return tuple(plain(item) for item in value)
    return value


def _legalize(builder: relax.BlockBuilder, call: relax.Call, kernel: Kernel) -> relax.Expr:
    args = [list(arg.fields) if isinstance(arg, relax.Tuple) else arg for arg in call.args]
    return builder.call_te(kernel, *args, primfunc_name_hint=kernel.__name__, **attributes_of(call))
