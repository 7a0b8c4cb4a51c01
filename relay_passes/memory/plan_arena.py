"""Gives every temporary of a function its place in one arena."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import IRModule, relax

from ..errors import PassError
from ..ir import CALLS, Expr, bindings_of, bytes_of, op_name, returned, type_bytes, update_function, used_vars
from ..operators.views import VIEWS
from .placement import Lifetime, lower_bound, place

ALIGNMENT = 64  # bytes: one cache line, and one vector of AVX-512

Output = tuple[relax.Var, int]
"""One output of one call: the variable bound to the call, and the position in its result."""


@tvm.transform.module_pass(opt_level=0, name="PlanArena")
@dataclass(frozen=True)
class PlanArena:
    """Choose the offset of every temporary in one arena.

    In: a dataflow function of ``call_tir``, ``call_tir_inplace``, views and tuples, in the order in which it will
    run. Out: the same function with attributes: ``arena_bytes`` and ``arena_lower_bound``, how large the arena is and
    how large it has to be at least; ``arena_offsets``, for each binding the offsets of its outputs; ``arena_map``, each
    temporary as (name, offset, size, first binding, last binding). A reshape lies where what it reshapes does, a part
    in the whole; what is joined is written where its parts lie. A result of the function has the offset -1, because the
    caller keeps it.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        memory = Memory(func)
        plan = place(memory.lifetimes())
        at = dict(zip(memory.temporaries, plan.offsets, strict=True))

        def offset(output: Output) -> int:
            home, inside = memory.home(output)
            return at[home] + inside if home in at else -1

        offsets = [[offset(output) for output in memory.outputs(binding)] for binding in bindings_of(func)]
        attributes = {
            "arena_bytes": plan.size,
            "arena_lower_bound": lower_bound(plan.lifetimes),
            "arena_offsets": offsets,
            "arena_map": [
                [lifetime.name, offset, lifetime.size, lifetime.first, lifetime.last]
                for lifetime, offset in zip(plan.lifetimes, plan.offsets, strict=True)
            ],
        }
        return update_function(mod, self.function, func.with_attrs(attributes))


class Memory:
    """Which memory each variable of a function names."""

    def __init__(self, func: relax.Function) -> None:
        self.bindings = bindings_of(func)
        self.values = {binding.var: binding.value for binding in self.bindings}
        self.inside: dict[Output, tuple[Output, int]] = {}
        """For what is written as a part of a larger value that value, and the offset in it in bytes."""
        for binding in self.bindings:
            if op_name(binding.value) == "pock.join":
                self._join(binding)
        self.results = returned(func)
        kept = {output for result in self.results for output in self.named_by(result)}
        self.span: dict[Output, list[int]] = {}
        for step, binding in enumerate(self.bindings):
            for output in self.outputs(binding):
                self.span.setdefault(self.home(output)[0], [step, step])[1] = step
            if op_name(binding.value) in CALLS:
                for var in used_vars(binding.value):
                    for output in self.named_by(var):
                        self.span[output][1] = step
        self.temporaries = [output for output in self.span if output not in kept]

    def _join(self, binding: relax.VarBinding) -> None:
        parts = binding.value.args[0].fields
        for index, part in enumerate(parts):
            made = self.named_by(part)
            if len(made) != 1 or made[0] in self.inside or bytes_of(part) != type_bytes(output_type(*made[0])):
                raise PassError(f"'{binding.var.name}' joins '{part.name}', which no kernel writes for it alone")
            self.inside[made[0]] = ((binding.var, 0), index * bytes_of(part))

    def lifetimes(self) -> tuple[Lifetime, ...]:
        """The lifetimes of ``temporaries``, sizes rounded up to the alignment."""
        return tuple(
            Lifetime(var.name, _aligned(type_bytes(output_type(var, index))), *self.span[var, index])
            for var, index in self.temporaries
        )

    def outputs(self, binding: relax.VarBinding) -> list[Output]:
        """What a binding writes: one output for each of a ``call_tir``."""
        if op_name(binding.value) != "relax.call_tir":
            return []
        var = binding.var
        return [(var, index) for index in range(len(var.ty.fields) if isinstance(var.ty, relax.TupleType) else 1)]

    def home(self, output: Output) -> tuple[Output, int]:
        """The memory that an output is written to, and the offset in it in bytes: its own, or that of what it is a
        part of."""
        return self.inside.get(output, (output, 0))

    def named_by(self, expr: Expr) -> list[Output]:
        """The memory that an expression names; none for parameters, constants and what is written in place."""
        named: list[Output] = []
        waiting: list[tuple[Expr, int | None]] = [(expr, None)]  # expressions, and which field of them
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
            elif name == "relax.call_tir":
                count = len(expr.ty.fields) if isinstance(expr.ty, relax.TupleType) else 1
                named += [self.home((expr, index))[0] for index in (range(count) if field is None else [field])]
            elif name == "pock.join":
                named.append((expr, 0))
            elif name in VIEWS:
                waiting.append((value.args[0], None))
            elif isinstance(value, relax.Call) and name != "relax.call_tir_inplace":
                raise PassError(f"'{expr.name}' is a '{name}'; a plan takes calls of kernels, views and tuples")
        return named

    def offset(self, expr: Expr) -> int:
        """Where in the memory that it names, or in its :meth:`origin`, a tensor lies, in bytes."""
        inside = 0
        while True:
            value: Any = self.values.get(expr) if isinstance(expr, relax.Var) else None
            name = op_name(value)
            if name == "relax.call_tir":
                return inside + self.home((expr, 0))[1]
            if (
                isinstance(value, relax.TupleGetItem)
                and op_name(self.values.get(value.tuple_value)) == "relax.call_tir"
            ):
                return inside + self.home((value.tuple_value, value.index))[1]
            if name == "pock.part":
                inside += int(value.attrs["index"]) * bytes_of(expr)
            elif name != "relax.reshape" and not isinstance(value, relax.Var):
                return inside
            expr = value if isinstance(value, relax.Var) else value.args[0]

    def origin(self, expr: Expr) -> Expr:
        """The parameter or constant of which an expression without memory of its own is a view."""
        while expr in self.values:
            value = self.values[expr]
            if op_name(value) == "relax.call_tir_inplace":
                raise PassError(f"'{expr.name}' reads what was written in place; read the parameter")
            if isinstance(value, relax.TupleGetItem):
                expr = value.tuple_value
            else:
                expr = value.args[0] if op_name(value) in VIEWS else value
        return expr


def output_type(var: relax.Var, index: int) -> relax.TensorType:
    """The type of one output of a call."""
    return var.ty.fields[index] if isinstance(var.ty, relax.TupleType) else var.ty


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
