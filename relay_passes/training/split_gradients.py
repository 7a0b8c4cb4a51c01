"""Computes a large gradient in parts, one for each update that reads it."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..canonical.select_early import Selection, selection_of
from ..ir import Expr, bindings_of, eliminate_dead, is_kept, op_name, rewrite, shape_of, update_function, used_vars
from ..operators.training import matmul


@tvm.transform.module_pass(opt_level=0, name="SplitGradients")
@dataclass(frozen=True)
class SplitGradients:
    """Split a matrix product whose readers all slice its rows into one product a slice.

    In, out: a dataflow function. :class:`OrderUpdates` then places an update after each product, so that one part of a
    large weight's gradient is in memory at a time.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        readers: dict[relax.Var, list[relax.VarBinding]] = {}
        for binding in bindings_of(func):
            for var in used_vars(binding.value):
                readers.setdefault(var, []).append(binding)
        split: dict[relax.Var, list[tuple[relax.Var, Selection]]] = {}
        for binding in bindings_of(func):
            rows = [(reader.var, _rows(reader.value)) for reader in readers.get(binding.var, [])]
            slices = [(var, selection) for var, selection in rows if selection is not None]
            if op_name(binding.value) == "pock.matmul" and not is_kept(binding.var) and len(slices) == len(rows):
                split[binding.var] = slices
        parts: dict[relax.Var, relax.Var] = {}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if var in split:
                a, b = value.args
                flags = {name: bool(value.attrs[name]) for name in ("transpose_a", "transpose_b")}
                for part, rows in split[var]:
                    axis = 1 if flags["transpose_a"] else 0
                    part_a = builder.emit(rows.along(axis).taken(a))
                    parts[part] = builder.emit(matmul(part_a, b, **flags), var.name)
            return parts.get(var, value)

        return update_function(mod, self.function, eliminate_dead(rewrite(func, visit)) if split else func)


def _rows(value: Expr) -> Selection | None:
    """The rows that a call slices from a matrix; None if it does anything else."""
    if op_name(value) != "relax.strided_slice" or len(shape_of(value)) != 2:
        return None
    rows = selection_of(value)
    return rows if rows is not None and rows.axis == 0 else None
