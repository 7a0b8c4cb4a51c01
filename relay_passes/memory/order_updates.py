"""Moves each update next to its gradient, to shorten the gradient's live range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..analysis.verify import written_by
from ..ir import bindings_of, op_name, returned, rewrite, update_function, used_vars
from ..ir.append import GRADIENT_SUM, states_of
from ..operators.record import record_of

GUARDS = OFF, UPDATE, STEP = "off", "update", "step"
"""How in-place calls wait for the tensors that a :class:`relay_passes.memory.call_list.Check` may find fault with."""


@tvm.transform.module_pass(opt_level=0, name="OrderUpdates")
@dataclass(frozen=True)
class OrderUpdates:
    """Move every in-place call up to the first position where it may run.

    In, out: a dataflow function of kernel calls, views and tuples. An in-place call may run once its operands exist and
    all other readers of the memory that it writes have run, views included: a layer's data gradient still reads the old
    weight. What needs another result of such a call (:class:`UpdateAndSum`) follows it likewise.

    With a guard they also wait for what is checked (:class:`ListCalls`). ``update``: for the loss, so that a loss that
    is not finite changes nothing. Running statistics, which need little memory meanwhile, wait for the last gradient,
    and so do weights whose gradients are added to sums. ``step``: every call waits for the last gradient, and all
    gradients are in memory at once.
    """

    function: str = "main"
    guard: str = OFF

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        bindings = bindings_of(func)
        updates = [binding for binding in bindings if op_name(binding.value) == "relax.call_tir_inplace"]
        moved = _needing([binding.var for binding in updates], bindings)
        others = [binding for binding in bindings if binding.var not in moved]
        position = {binding.var: index for index, binding in enumerate(others)}
        behind = _behind_views(bindings)
        bound = self._bounds(func, updates, position)
        last_read: dict[relax.Var, int] = {}
        for index, binding in enumerate(others):
            last_read.update(dict.fromkeys(_read(binding, behind), index))

        after: dict[int, list[relax.VarBinding]] = {}
        # Keep dependent updates in order. By variable: position of the last update that reads it, that writes it.
        reads: dict[relax.Var, int] = {}
        writes: dict[relax.Var, int] = {}
        for binding in (each for each in bindings if each.var in moved):
            read = _read(binding, behind)
            written = written_by(binding.value)
            ready = [position.get(var, -1) for var in read] + [writes.get(var, -1) for var in read]
            free = [last_read.get(var, -1) for var in written] + [reads.get(var, -1) for var in written]
            place = max([*ready, *free, *([bound(written)] if written else [])], default=-1)
            reads.update((var, max(place, reads.get(var, -1))) for var in read)
            writes.update((var, place) for var in written)
            position[binding.var] = place
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

    def _bounds(
        self, func: relax.Function, updates: list[relax.VarBinding], position: dict[relax.Var, int]
    ) -> Callable[[list[relax.Var]], int]:
        """Return a function that gives the first position for a call that writes some parameters in place, as far as
        the guard is concerned."""
        if self.guard == OFF or not updates:
            return lambda _written: -1
        loss = position.get(returned(func)[0], -1)
        needed = {var for binding in updates for var in used_vars(binding.value)}
        sums = {name for name, (slot, _) in states_of(func).items() if slot == GRADIENT_SUM}
        statistics = set(map(str, func.attrs.get("state_updates", [])))

        def bound(written: list[relax.Var]) -> int:
            names = {var.name for var in written}
            waits = self.guard == STEP or names <= statistics or (sums and not names <= sums)
            return max(loss, *(position.get(var, -1) for var in needed)) if waits else loss

        return bound


def _needing(updates: list[relax.Var], bindings: list[relax.VarBinding]) -> set[relax.Var]:
    """Return in-place calls, and what needs their results."""
    needing = set(updates)
    for binding in bindings:
        if needing.intersection(used_vars(binding.value)):
            needing.add(binding.var)
    return needing


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
