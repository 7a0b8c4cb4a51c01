"""Alias analysis: the buffer that each variable of a function names."""

from __future__ import annotations

from typing import Any

from tvm import relax

from ..errors import PassError
from ..ir import CALLS, Expr, bindings_of, bytes_of, op_name, returned, type_bytes
from ..operators.record import record_of

Output = tuple[relax.Var, int]
"""Output of a call: the variable bound to the call, and the position in its result."""
Buffer = Output
"""Allocation, named after the output written there: a kernel's, or that of a join."""


class Aliasing:
    """Alias analysis of a function: its buffers, and the variables that are views of them.

    The function is a dataflow function of ``call_tir``, ``call_tir_inplace``, views and tuples. A reshape aliases its
    operand, a part aliases a range of the whole, and the operands of a join are written inside its buffer.
    """

    def __init__(self, func: relax.Function) -> None:
        self.bindings = bindings_of(func)
        self.values = {binding.var: binding.value for binding in self.bindings}
        self.inside: dict[Output, tuple[Buffer, int]] = {}
        """Outputs written inside a larger buffer: that buffer, and the offset in bytes."""
        for binding in self.bindings:
            if op_name(binding.value) == "pock.join":
                self._join(binding)
        self.results = returned(func)

    def _join(self, binding: relax.VarBinding) -> None:
        parts = binding.value.args[0].fields
        for index, part in enumerate(parts):
            made = self.buffers(part)
            if len(made) != 1 or made[0] in self.inside or bytes_of(part) != type_bytes(output_type(*made[0])):
                raise PassError(f"'{binding.var.name}' joins '{part.name}', which no kernel writes for it alone")
            self.inside[made[0]] = ((binding.var, 0), index * bytes_of(part))

    def outputs(self, binding: relax.VarBinding) -> list[Output]:
        """Return the outputs that a binding writes, one for each result that its call does not write in place."""
        return [(binding.var, index) for index in _new_results(binding.value, binding.var)]

    def buffer_of(self, output: Output) -> tuple[Buffer, int]:
        """Return the buffer that an output is written to, and its offset in bytes."""
        return self.inside.get(output, (output, 0))

    def buffers(self, expr: Expr) -> list[Buffer]:
        """Return the buffers that an expression aliases; none for parameters, constants and in-place results."""
        found: list[Buffer] = []
        waiting: list[tuple[Expr, int | None]] = [(expr, None)]  # expressions, with a tuple field or None for all
        while waiting:
            expr, field = waiting.pop()
            value: Any = self.values.get(expr) if isinstance(expr, relax.Var) else expr
            name = op_name(value)
            if isinstance(value, relax.Tuple):
                fields = list(value.fields) if field is None else [value.fields[field]]
                waiting += [(part, None) for part in reversed(fields)]
            elif isinstance(value, relax.TupleGetItem):
                waiting.append((value.tuple_value, value.index))
            elif isinstance(value, relax.Var):
                waiting.append((value, field))
            elif name in CALLS:
                made = _new_results(value, expr)
                found += [self.buffer_of((expr, index))[0] for index in made if field is None or index == field]
            elif name == "pock.join":
                found.append((expr, 0))
            elif record_of(name).is_alias:
                waiting.append((value.args[0], None))
            elif isinstance(value, relax.Call):
                raise PassError(f"'{expr.name}' is a '{name}'; a plan takes calls of kernels, views and tuples")
        return found

    def offset(self, expr: Expr) -> int:
        """Return the offset in bytes of a tensor in its buffer, or in its :meth:`origin`."""
        inside = 0
        while True:
            value: Any = self.values.get(expr) if isinstance(expr, relax.Var) else None
            name = op_name(value)
            if name == "relax.call_tir":
                return inside + self.buffer_of((expr, 0))[1]
            if isinstance(value, relax.TupleGetItem) and op_name(self.values.get(value.tuple_value)) in CALLS:
                return inside + self.buffer_of((value.tuple_value, value.index))[1]
            if name == "pock.part":
                inside += int(value.attrs["index"]) * bytes_of(expr)
            elif name != "relax.reshape" and not isinstance(value, relax.Var):
                return inside
            expr = value if isinstance(value, relax.Var) else value.args[0]

    def origin(self, expr: Expr) -> Expr:
        """Return the parameter or constant that an expression without a buffer aliases."""
        while expr in self.values:
            value = self.values[expr]
            if op_name(value) == "relax.call_tir_inplace":
                raise PassError(f"'{expr.name}' reads what was written in place; read the parameter")
            if isinstance(value, relax.TupleGetItem):
                expr = value.tuple_value
            else:
                expr = value.args[0] if record_of(value).is_alias else value
        return expr


def _new_results(value: Expr, var: relax.Var) -> list[int]:
    """Return the positions of the results that a call, bound to ``var``, writes to memory of their own."""
    if op_name(value) not in CALLS:
        return []
    count = len(var.ty.fields) if isinstance(var.ty, relax.TupleType) else 1
    if op_name(value) == "relax.call_tir":
        return list(range(count))
    return [at for at, index in enumerate(value.attrs.inplace_indices) if int(index) < 0]


def output_type(var: relax.Var, index: int) -> relax.TensorType:
    """Return the type of one output of a call."""
    return var.ty.fields[index] if isinstance(var.ty, relax.TupleType) else var.ty
