"""Keeps for the backward graph the smallest form of what it needs."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..ir import Expr, assemble, bindings_of, bytes_of, update_function, used_vars


@tvm.transform.module_pass(opt_level=0, name="SaveSmall")
@dataclass(frozen=True)
class SaveSmall:
    """Move computations of the backward graph up into the forward graph where that shrinks what has to be kept.

    In: a function that :class:`Backward` gave, whose first result is the loss; out: the same computations in another
    order. An activation that the backward graph reads only to compute something smaller need not be kept: the sign of a
    ReLU's result (a byte an element), the trained channels of a convolution's input, the place of a maximum in its
    window. That is computed as soon as the activation exists, and kept in its place.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        return update_function(mod, self.function, _Saving(mod[self.function]).run())


class _Saving:
    def __init__(self, func: relax.Function) -> None:
        self.func = func
        bindings = bindings_of(func)
        position = {binding.var: index for index, binding in enumerate(bindings)}
        loss = loss_of(func)
        self.forward = bindings[: position[loss] + 1]
        self.late = bindings[position[loss] + 1 :]
        self.position = {binding.var: index for index, binding in enumerate(self.forward)}
        self.last_use = dict(self.position)
        for index, binding in enumerate(self.forward):
            self.last_use.update(
                dict.fromkeys((var for var in used_vars(binding.value) if var in self.position), index)
            )
        self.readers: dict[relax.Var, list[relax.VarBinding]] = {}
        for binding in self.late:
            for var in set(used_vars(binding.value)):
                self.readers.setdefault(var, []).append(binding)

    def run(self) -> relax.Function:
        ready = self._ready()
        moved: set[relax.Var] = set()
        for binding in self.forward:
            activation = binding.var
            cone = self._cone(activation, ready) if activation in self.readers else None
            if not cone:
                continue
            frontier = [var for var in cone if any(reader.var not in cone for reader in self.readers.get(var, []))]
            if sum(bytes_of(var) for var in frontier) < bytes_of(activation):
                moved |= cone
        moved |= self._needed_by(moved)
        late = [binding for binding in self.late if binding.var not in moved]
        early = set(self.position) | moved
        saved = {var for binding in late for var in used_vars(binding.value) if var in early}
        return assemble(self.func.params, [*self._with(moved), *late], self.func.body.body, self.func.attrs, saved)

    def _ready(self) -> dict[relax.Var, int]:
        """For each value of the backward graph the place in the forward graph behind which it could be computed."""
        ready = dict(self.position)
        for binding in self.late:
            read = [var for var in used_vars(binding.value) if var not in self.func.params]
            ready[binding.var] = max((ready[var] for var in read), default=0)
        return ready

    def _cone(self, activation: relax.Var, ready: dict[relax.Var, int]) -> set[relax.Var] | None:
        """What can be computed from an activation while the forward graph still has it; None if something cannot be.

        A gradient cannot: it waits for the loss.
        """
        cone: set[relax.Var] = set()
        front = [activation]
        while front:
            value = front.pop()
            for reader in self.readers.get(value, []):
                if ready[reader.var] > self.last_use[activation] or not isinstance(reader.value, relax.Call):
                    if value is activation:
                        return None
                elif reader.var not in cone:
                    cone.add(reader.var)
                    front.append(reader.var)
        return cone

    def _needed_by(self, moved: set[relax.Var]) -> set[relax.Var]:
        """What the moved values read and is still in the backward graph."""
        needed: set[relax.Var] = set()
        for binding in reversed(self.late):
            if binding.var in moved or binding.var in needed:
                needed.update(
                    var for var in used_vars(binding.value) if var in self.readers and var not in self.position
                )
        return needed - moved - set(self.func.params)

    def _with(self, moved: set[relax.Var]) -> list[relax.VarBinding]:
        """The forward graph with each moved value right behind the last thing that it reads."""
        ready = self._ready()
        behind: dict[int, list[relax.VarBinding]] = {}
        for binding in self.late:
            if binding.var in moved:
                behind.setdefault(ready[binding.var], []).append(binding)
        return [entry for index, binding in enumerate(self.forward) for entry in [binding, *behind.get(index, [])]]


def loss_of(func: relax.Function) -> Expr:
    """The variable that is bound to the first result: the loss."""
    values = {binding.var: binding.value for binding in bindings_of(func)}
    body = func.body.body
    while isinstance(values.get(body), relax.Tuple | relax.Var):
        value = values[body]
        body = value.fields[0] if isinstance(value, relax.Tuple) else value
    return body
