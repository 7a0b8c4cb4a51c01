"""Saves for the backward graph the smallest form of the activations that it needs."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..ir import Expr, assemble, bindings_of, bytes_of, update_function, used_vars


@tvm.transform.module_pass(opt_level=0, name="SaveSmall")
@dataclass(frozen=True)
class SaveSmall:
    """Hoist computations of the backward graph into the forward graph where that shrinks the saved activations.

    In: the result of :class:`Backward`, whose first result is the loss. Out: the same computations in another order. An
    activation need not be saved where the backward graph reads it only to compute something smaller: the sign of a
    ReLU's result (a byte an element), the trained channels of a convolution's input, the argmax of a pooling window.
    The smaller value is computed as soon as the activation exists, and saved instead.
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
        self.backward = bindings[position[loss] + 1 :]
        self.position = {binding.var: index for index, binding in enumerate(self.forward)}
        self.last_use = dict(self.position)
        for index, binding in enumerate(self.forward):
            self.last_use.update(
                dict.fromkeys((var for var in used_vars(binding.value) if var in self.position), index)
            )
        self.readers: dict[relax.Var, list[relax.VarBinding]] = {}
        for binding in self.backward:
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
        forward = self._forward_with(moved)
        backward = [binding for binding in self.backward if binding.var not in moved]
        available = set(self.position) | moved
        saved = {var for binding in backward for var in used_vars(binding.value) if var in available}
        return assemble(self.func.params, [*forward, *backward], self.func.body.body, self.func.attrs, saved)

    def _ready(self) -> dict[relax.Var, int]:
        """Map each value to the index of the forward binding after which it can be computed."""
        ready = dict(self.position)
        for binding in self.backward:
            read = [var for var in used_vars(binding.value) if var not in self.func.params]
            ready[binding.var] = max((ready[var] for var in read), default=0)
        return ready

    def _cone(self, activation: relax.Var, ready: dict[relax.Var, int]) -> set[relax.Var] | None:
        """The backward values that can be computed from an activation within its forward live range.

        None if a direct reader cannot be: gradients wait for the loss.
        """
        cone: set[relax.Var] = set()
        pending = [activation]
        while pending:
            value = pending.pop()
            for reader in self.readers.get(value, []):
                if ready[reader.var] > self.last_use[activation] or not isinstance(reader.value, relax.Call):
                    if value is activation:
                        return None
                elif reader.var not in cone:
                    cone.add(reader.var)
                    pending.append(reader.var)
        return cone

    def _needed_by(self, moved: set[relax.Var]) -> set[relax.Var]:
        """The backward values that the moved ones read, which have to move with them."""
        needed: set[relax.Var] = set()
        for binding in reversed(self.backward):
            if binding.var in moved or binding.var in needed:
                needed.update(
                    var for var in used_vars(binding.value) if var in self.readers and var not in self.position
                )
        return needed - moved - set(self.func.params)

    def _forward_with(self, moved: set[relax.Var]) -> list[relax.VarBinding]:
        """The forward bindings, with each moved binding right after the last one that it reads."""
        ready = self._ready()
        insertions: dict[int, list[relax.VarBinding]] = {}
        for binding in self.backward:
            if binding.var in moved:
                insertions.setdefault(ready[binding.var], []).append(binding)
        return [entry for index, binding in enumerate(self.forward) for entry in [binding, *insertions.get(index, [])]]


def loss_of(func: relax.Function) -> Expr:
    """The variable of the first result, the loss."""
    values = {binding.var: binding.value for binding in bindings_of(func)}
    body = func.body.body
    while isinstance(values.get(body), relax.Tuple | relax.Var):
        value = values[body]
        body = value.fields[0] if isinstance(value, relax.Tuple) else value
    return body
