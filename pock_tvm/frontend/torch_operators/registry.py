"""The registry of converters from PyTorch's operators to Relax.

A converter is a function of a :class:`Site` and of the operator's arguments *by the names of PyTorch's schema*. An
argument that a converter does not name must have its default value, else it is refused by name: no argument is ever
ignored. To add an operator, write one function here and one row in
``tests/pock_tvm/frontend/test_torch_operators.py``. Operators without a converter are decomposed by PyTorch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tvm import relax
from tvm.relax import op as R

from relay_passes.analysis.fixed_point import EightBits
from relay_passes.ir import Expr, constant_value, dtype_of, op_name, shape_of

from ..model import LookUp

Number = bool | int | float
Result = Expr | Sequence[Expr | None]
"""Result of a converter: a value, or one for each of the operator's results, None for an unsupported result."""

RENAMED = {"self": "x"}
"""Argument names of PyTorch's schemas that converters rename."""


class Unsupported(Exception):
    """An operator or argument without a translation; the message continues a sentence that names the operator."""


@dataclass(frozen=True)
class Site:
    """The place of a conversion: one node of an exported graph."""

    builder: relax.BlockBuilder
    types: tuple[tuple[tuple[int, ...], str], ...]
    """Shape and element type of each result, as PyTorch gives them."""
    name: str
    """Name of the values created here: ``blocks.3.conv:conv2d``."""
    look_ups: list[LookUp]
    """Reads by index so far."""
    stated: dict[str, EightBits]
    """Scales that a quantised model states so far, by the name of the value."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the (first) result."""
        return self.types[0][0]

    @property
    def dtype(self) -> str:
        """The element type of the (first) result."""
        return self.types[0][1]

    def emit(self, expr: Expr) -> relax.Var:
        """Bind an expression to a variable."""
        return self.builder.emit(expr, self.name)

    def cast(self, x: Expr | Number, dtype: str | None = None) -> Expr:
        """Cast a tensor or number, by default to the result's element type."""
        dtype = dtype or self.dtype
        if not isinstance(x, relax.Expr):
            return relax.const(_number(x, dtype), dtype)
        if dtype_of(x) == dtype:
            return x
        known = constant_value(x)
        if known is not None:
            return relax.const(known.astype(dtype), dtype)
        if dtype == "bool":  # nonzero is true; a cast would truncate 0.5 first
            return self.emit(R.not_equal(x, relax.const(0, dtype_of(x))))
        return self.emit(R.astype(x, dtype))

    def looked_up(self, index: Expr, extent: int, *, from_end: bool = False) -> None:
        """Record a read by index along ``extent`` positions."""
        if isinstance(index, relax.Var):
            self.look_ups.append(LookUp(index, extent, from_end))

    def promoted(self, *operands: Expr | Number) -> list[Expr]:
        """Cast operands to the type in which PyTorch computes an element-wise operator."""
        dtype = self.dtype if self.dtype != "bool" else common_dtype(*operands)
        return [self.cast(operand, dtype) for operand in operands]

    def broadcast(self, x: Expr, shape: Sequence[int] | None = None) -> Expr:
        """Broadcast a tensor, by default to the result's shape."""
        shape = tuple(self.shape if shape is None else shape)
        return x if shape_of(x) == shape else self.emit(R.broadcast_to(x, shape))

    def unrepeated(self, x: Expr) -> Expr:
        """Undo a broadcast that kept the rank, if the tensor results from one."""
        made: Any = self.builder.lookup_binding(x) if isinstance(x, relax.Var) else None
        is_repeated = op_name(made) == "relax.broadcast_to" and len(shape_of(made.args[0])) == len(shape_of(x))
        return made.args[0] if is_repeated else x

    def full(self, value: Number, shape: Sequence[int] | None = None, dtype: str | None = None) -> Expr:
        """Create a tensor filled with a number, by default of the result's shape and type."""
        shape, number = tuple(self.shape if shape is None else shape), self.cast(value, dtype)
        if not shape or not math.isfinite(value):  # TVM has no kernel for relax.full of infinity
            return self.broadcast(number, shape)
        return self.emit(R.full(relax.ShapeExpr(shape), number, dtype_of(number)))

    def reshape(self, x: Expr, shape: Sequence[int]) -> Expr:
        """Reshape a tensor; fold constants."""
        known = constant_value(x)
        if known is not None:
            return relax.const(known.reshape(shape), dtype_of(x))
        return x if shape_of(x) == tuple(shape) else self.emit(R.reshape(x, tuple(shape)))


Converter = Callable[..., Result]
_CONVERTERS: dict[str, Converter] = {}


def converter(*names: str) -> Callable[[Converter], Converter]:
    """Register a converter for ATen operators, each named with its overload: ``add.Tensor``."""

    def register(function: Converter) -> Converter:
        for name in names:
            if name in _CONVERTERS:
                raise ValueError(f"'{name}' has two converters")
            _CONVERTERS[name] = function
        return function

    return register


def has_converter(operator: torch._ops.OpOverload) -> bool:
    """Check whether an operator has a converter."""
    return name_of(operator) in _CONVERTERS


def name_of(operator: Any) -> str:
    """Return an operator's name with its overload, and with its library unless that is ATen."""
    name = operator.name() if isinstance(operator, torch._ops.OpOverload) else getattr(operator, "__name__", "")
    name = name.removeprefix("aten::")
    return name if "." in name.partition("::")[2] or ("." in name and "::" not in name) else f"{name}.default"


def convert(operator: torch._ops.OpOverload, site: Site, args: Sequence[Any], kwargs: dict[str, Any]) -> Result:
    """Convert one call of an operator; tensor arguments are Relax expressions.

    Raises
    ------
    Unsupported
        There is no converter, or it does not support the value of an argument.
    """
    function = _CONVERTERS.get(name_of(operator))
    if function is None:
        raise Unsupported("is not supported")
    accepted = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    values: dict[str, Any] = {}
    for position, argument in enumerate(operator._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        value = args[position] if position < len(args) else kwargs.get(argument.name, default)
        name = RENAMED.get(argument.name, argument.name)
        if name in accepted or takes_all:
            values[name] = value
        elif argument.name not in WITHOUT_EFFECT and (isinstance(value, relax.Expr) or value != default):
            raise Unsupported(f"with {argument.name}={value!r} is not supported")
    return function(site, **values)


WITHOUT_EFFECT = frozenset(
    {
        "layout",
        "device",
        "pin_memory",
        "non_blocking",
        "memory_format",
        "implicit",
        "cudnn_enable",
        "cudnn_enabled",
        "sparse",
    }
)
"""Arguments that affect storage, device or algorithm, but no result."""


def common_dtype(*operands: Expr | Number) -> str:
    """Return the common element type of operands (``torch.result_type``)."""
    stand_ins = [
        torch.empty((1,) * min(1, len(shape_of(operand))), dtype=getattr(torch, dtype_of(operand)), device="meta")
        if isinstance(operand, relax.Expr)
        else operand
        for operand in operands
    ]
    first, *rest = stand_ins
    dtype = torch.result_type(first, rest[0] if rest else first)
    return str(dtype).removeprefix("torch.")


def _number(value: Number, dtype: str) -> Number:
    if dtype == "bool":
        return bool(value)
    return float(value) if dtype.startswith("float") else int(value)


def normalized(axis: int, rank: int) -> int:
    """Normalise a possibly negative axis; a scalar counts as one axis."""
    return axis % max(rank, 1)


def axes_of(dim: int | Sequence[int] | None, rank: int) -> list[int]:
    """List the axes of a reduction's ``dim``: all for None and for an empty list."""
    if dim is None or (not isinstance(dim, int) and not dim):
        return list(range(rank))
    return sorted(normalized(axis, rank) for axis in ([dim] if isinstance(dim, int) else dim)) if rank else []


Extents = int | Sequence[int]


def extents(value: Extents, rank: int) -> list[int]:
    """Repeat a single number for every dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values
