"""Moves each update next to its gradient, to shorten the gradient's live range."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..ir import bindings_of, op_name, rewrite, update_function, used_vars
from ..operators.record import record_of


@tvm.transform.module_pass(opt_level=0, name="OrderUpdates")
@dataclass(frozen=True)
class OrderUpdates:
    """Move every in-place call up to the first position where it may run.

    In, out: a dataflow function of kernel calls, views and tuples. An in-place call may run once its operands exist and
    all other readers of the memory that it writes have run, views included: a layer's data gradient still reads the old
    weight.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        bindings = bindings_of(func)
        updates = [binding for binding in bindings if op_name(binding.value) == "relax.call_tir_inplace"]
        others = [binding for binding in bindings if op_name(binding.value) != "relax.call_tir_inplace"]
        position = {binding.var: index for index, binding in enumerate(others)}
        behind = _behind_views(others)
        last_read: dict[relax.Var, int] = {}
        for index, binding in enumerate(others):
            last_read.update(dict.fromkeys(_read(binding, behind), index))

        after: dict[int, list[relax.VarBinding]] = {}
        # Keep dependent updates in order. By variable: position of the last update that reads it, that writes it.
        reads: dict[relax.Var, int] = {}
        writes: dict[relax.Var, int] = {}
        for binding in updates:
            read = _read(binding, behind)
            written = [binding.value.args[1].fields[int(index)] for index in binding.value.attrs.inplace_indices]
            ready = [position.get(var, -1) for var in read] + [writes.get(var, -1) for var in read]
            free = [last_read.get(var, -1) for var in written] + [reads.get(var, -1) for var in written]
            place = max(*ready, *free)
            reads.update((var, max(place, reads.get(var, -1))) for var in read)
            writes.update((var, place) for var in (binding.var, *written))
            after.setdefault(place, []).append(binding)

        ordered = list(after.get(-1, []))
        for index, binding in enumerate(others):
            ordered += [binding, *after.get(index, [])]
        shell = relax.Function(
            func.params,
            relax.SeqExpr([relax.DataflowBlock(ordered)], func.body.body),
            func.ret_ty,
            func.is_pure,
            func.attrs,
        )
        return update_function(mod, self.function, rewrite(shell))


def _behind_views(bindings: list[relax.VarBinding]) -> dict[relax.Var, list[relax.Var]]:
    """Map each view, tuple or tuple field to the variables that it aliases."""
    behind: dict[relax.Var, list[relax.Var]] = {}
    for binding in bindings:
        if record_of(binding.value).is_alias or not isinstance(binding.value, relax.Call):
            behind[binding.var] = _read(binding, behind)
    return behind


def _read(binding: relax.VarBinding, behind: dict[relax.Var, list[relax.Var]]) -> list[relax.Var]:
    """Return the variables that a bound value reads, with the variables that they alias."""
    return [each for var in used_vars(binding.value) for each in (var, *behind.get(var, ()))]
