"""The table of converters: what each of PyTorch's operators becomes in Relax.

A converter is a function of a :class:`Site` and of the operator's arguments *by the names of PyTorch's schema*. An
argument that a converter does not name must have its default value, else it is refused by name: no argument is ever
ignored. To add an operator, write one function here and one row in
``tests/pock_tvm/frontend/test_torch_operators.py``. Operators without a converter are decomposed by PyTorch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, constant_value, dtype_of, op_name, shape_of

from ..model import LookUp

Number = bool | int | float
Result = Expr | Sequence[Expr | None]
"""What a converter gives: a value, or one for each of the operator's results, None for one that cannot be had."""

RENAMED = {"self": "x"}
"""Names of PyTorch's schemas that no Python argument should have."""


class Unsupported(Exception):
    """An operator, or an argument of it, that has no translation; the message is the end of the user's."""


@dataclass(frozen=True)
class Site:
    """Where a converter works: one node of an exported graph."""

    builder: relax.BlockBuilder
    types: tuple[tuple[tuple[int, ...], str], ...]
    """Shape and element type of each of the node's results, by PyTorch."""
    name: str
    """What the values made here are called: ``blocks.3.conv:conv2d``."""
    look_ups: list[LookUp]
    """What was read by index so far."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the (first) result."""
        return self.types[0][0]

    @property
    def dtype(self) -> str:
        """The element type of the (first) result."""
        return self.types[0][1]

    def emit(self, expr: Expr) -> relax.Var:
        """Bind an expression."""
        return self.builder.emit(expr, self.name)

    def cast(self, x: Expr | Number, dtype: str | None = None) -> Expr:
        """A tensor or number in an element type, by default the result's."""
        dtype = dtype or self.dtype
        if not isinstance(x, relax.Expr):
            return relax.const(_number(x, dtype), dtype)
        if dtype_of(x) == dtype:
            return x
        known = constant_value(x)
        if known is not None:
            return relax.const(known.astype(dtype), dtype)
        if dtype == "bool":  # every number but zero is true; a conversion would cut 0.5 off first
            return self.emit(R.not_equal(x, relax.const(0, dtype_of(x))))
        return self.emit(R.astype(x, dtype))

    def looked_up(self, index: Expr, extent: int, *, from_end: bool = False) -> None:
        """Note that ``extent`` positions are read by an index, which may count from the end or may not."""
        if isinstance(index, relax.Var):
            self.look_ups.append(LookUp(index, extent, from_end))

    def promoted(self, *operands: Expr | Number) -> list[Expr]:
        """Operands in the type in which PyTorch computes an element-wise operator of them."""
        dtype = self.dtype if self.dtype != "bool" else common_dtype(*operands)
        return [self.cast(operand, dtype) for operand in operands]

    def broadcast(self, x: Expr, shape: Sequence[int] | None = None) -> Expr:
        """A tensor repeated to a shape, by default the result's."""
        shape = tuple(self.shape if shape is None else shape)
        return x if shape_of(x) == shape else self.emit(R.broadcast_to(x, shape))

    def unrepeated(self, x: Expr) -> Expr:
        """A tensor before its axes of extent 1 were repeated."""
        made: Any = self.builder.lookup_binding(x) if isinstance(x, relax.Var) else None
        is_repeated = op_name(made) == "relax.broadcast_to" and len(shape_of(made.args[0])) == len(shape_of(x))
        return made.args[0] if is_repeated else x

    def full(self, value: Number, shape: Sequence[int] | None = None, dtype: str | None = None) -> Expr:
        """A tensor of one number everywhere, by default in the shape and type of the result."""
        shape, number = tuple(self.shape if shape is None else shape), self.cast(value, dtype)
        return self.emit(R.full(relax.ShapeExpr(shape), number, dtype_of(number))) if shape else number

    def reshape(self, x: Expr, shape: Sequence[int]) -> Expr:
        """The same elements in another shape."""
        known = constant_value(x)
        if known is not None:
            return relax.const(known.reshape(shape), dtype_of(x))
        return x if shape_of(x) == tuple(shape) else self.emit(R.reshape(x, tuple(shape)))


Converter = Callable[..., Result]
_CONVERTERS: dict[str, Converter] = {}


def converter(*names: str) -> Callable[[Converter], Converter]:
    """Register a converter for operators of ATen, each written with its overload: ``add.Tensor``."""

    def register(function: Converter) -> Converter:
        for name in names:
            if name in _CONVERTERS:
                raise ValueError(f"'{name}' has two converters")
            _CONVERTERS[name] = function
        return function

    return register


def has_converter(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator is translated as it is."""
    return name_of(operator) in _CONVERTERS


def name_of(operator: Any) -> str:
    """An operator's name with its overload; that of another library than ATen with the library."""
    name = operator.name() if isinstance(operator, torch._ops.OpOverload) else getattr(operator, "__name__", "")
    name = name.removeprefix("aten::")
    return name if "." in name.partition("::")[2] or ("." in name and "::" not in name) else f"{name}.default"


def convert(operator: torch._ops.OpOverload, site: Site, args: Sequence[Any], kwargs: dict[str, Any]) -> Result:
    """Translate one call of an operator, whose tensors are Relax expressions.

    Raises
    ------
    Unsupported
        There is no converter, or an argument has a value that it does not know.
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
"""Arguments that say where or how PyTorch stores or computes something, never what."""


def common_dtype(*operands: Expr | Number) -> str:
    """The element type in which PyTorch compares operands (``torch.result_type`` of all of them)."""
    stand_ins = [
        torch.empty((1,) * min(1, len(shape_of(operand))), dtype=getattr(torch, dtype_of(operand)), device="meta")
        if isinstance(operand, relax.Expr)
        else operand
        for operand in operands
    ]
    first, *rest = stand_ins
    found = torch.result_type(first, rest[0] if rest else first)
    return str(found).removeprefix("torch.")


def _number(value: Number, dtype: str) -> Number:
    if dtype == "bool":
        return bool(value)
    return float(value) if dtype.startswith("float") else int(value)


def normalized(axis: int, rank: int) -> int:
    """An axis counted from the front; a number has one axis to count."""
    return axis % max(rank, 1)


def axes_of(dim: int | Sequence[int] | None, rank: int) -> list[int]:
    """The axes that a reduction's ``dim`` names: all for None and for an empty list."""
    if dim is None or (not isinstance(dim, int) and not dim):
        return list(range(rank))
    return sorted(normalized(axis, rank) for axis in ([dim] if isinstance(dim, int) else dim)) if rank else []


Extents = int | Sequence[int]


def extents(value: Extents, rank: int) -> list[int]:
    """One number a dimension, where PyTorch takes one for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values
