"""Registers Relax operators from Python.

Relax lacks operators for the products of training, such as the weight gradient of a convolution. They are added here as
ordinary Relax operators, named ``pock.*``. Each has a type rule (``FInferType``) and a legalisation (``FLegalize``), so
every TVM pass can handle it, and prints as an ``R.call`` node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.ir import _ffi_api

from schedules.kernels import OPAQUE

from ..errors import RegistrationError
from .record import describe

InferType = Callable[[relax.Call], Any]
Kernel = Callable[..., Any]

_REGISTERED: set[str] = set()


def register_operator(
    name: str, arguments: list[str], infer_type: InferType, kernel: Kernel, *, fuses: bool = True, **facts: Any
) -> Callable[..., relax.Call]:
    """Register the pure operator ``name`` and return a function that makes calls of it.

    Parameters
    ----------
    name : str
        Name of the operator, ``pock.…``.
    arguments : list of str
        Names of its tensor arguments. Everything else is an attribute.
    infer_type : callable
        ``infer_type(call)`` returns the type of the result from ``call.args`` and ``call.attrs``.
    kernel : callable
        ``kernel(*tensors, **attributes)`` returns the result as a ``te.Tensor``. A tuple argument is passed as a list.
    fuses : bool
        Whether its kernel may be fused with others, as TVM classifies it. False where its schedule writes it anew.
    facts
        Fields of its record (:class:`~relay_passes.operators.record.OperatorRecord`).

    Raises
    ------
    RegistrationError
        An operator of this name exists already.
    """
    if name in _REGISTERED:
        raise RegistrationError(f"there is an operator '{name}' already")
    _REGISTERED.add(name)
    describe(name, **facts)
    if name not in tvm.ir.Op.list_op_names():
        _ffi_api.RegisterOp(name, f"{name}: see relay_passes/operators")
    op = tvm.ir.Op.get(name)
    if op.get_attr("FInferType") is None:  # has_attr returns True for every name
        op.set_num_inputs(len(arguments))
        for argument in arguments:
            op.add_argument(argument, "Tensor", argument)
        op.set_attr("FPurity", True)
        op.set_attr("TScriptPrinterName", name)
        op.set_attr("FInferType", lambda call, _builder: infer_type(call))
        op.set_attr("FLegalize", lambda builder, call: _legalize(builder, call, kernel, fuses))

    def make(*tensors: relax.Expr, **attributes: Any) -> relax.Call:
        if len(tensors) != len(arguments):
            raise TypeError(f"{name} takes {len(arguments)} tensors {arguments}, not {len(tensors)}")
        return relax.Call(op, list(tensors), attributes)

    make.__name__ = name.removeprefix("pock.")
    make.__doc__ = kernel.__doc__
    return make


def attributes_of(call: relax.Call) -> dict[str, Any]:
    """Return the attributes of a ``pock.*`` call as plain Python values."""
    return {key: plain(value) for key, value in call.attrs.items()}


def plain(value: Any) -> Any:
    """Convert an FFI value to a plain Python one: arrays to tuples, integer and float nodes to numbers."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return value.value
    if hasattr(value, "__iter__"):
        return tuple(plain(item) for item in value)
    return value


def _legalize(builder: relax.BlockBuilder, call: relax.Call, kernel: Kernel, fuses: bool) -> relax.Expr:
    args = [list(arg.fields) if isinstance(arg, relax.Tuple) else arg for arg in call.args]
    attrs = None if fuses else {"op_pattern": OPAQUE}
    return builder.call_te(
        kernel, *args, primfunc_name_hint=kernel.__name__, primfunc_attrs=attrs, **attributes_of(call)
    )
