"""Appends in-place writes to the end of a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tvm import IRModule, relax, tirx
from tvm.relax import op as R

from schedules.kernels import update

from ..errors import PassError
from . import Expr, dtype_of, results_of, rewrite, shape_of, update_function
from .trained_part import TrainedPart

GRADIENT_SUM = "gradient_sum"
"""The state slot of gradient sums, where several steps share one update."""


@dataclass
class InPlaceWriter:
    """A builder of in-place writes at the end of a function."""

    mod: IRModule
    function: str
    new_params: list[relax.Var] = field(default_factory=list)
    written: list[Expr] = field(default_factory=list)
    states: dict[str, list[str]] = field(default_factory=dict)

    def append(self, updates: Callable[[InPlaceWriter, dict[str, Expr]], None]) -> IRModule:
        """Rebuild the module with the writes that ``updates(self, gradients by parameter)`` emits."""
        func = self.mod[self.function]
        if "gradients" not in func.attrs:
            raise PassError(f"function '{self.function}' returns no gradients: run relay_passes.Backward first")
        self.params = {param.name: param for param in func.params}
        self.kernels = relax.BlockBuilder(self.mod)

        def with_updates(builder: relax.BlockBuilder, body: Expr) -> Expr:
            self.emit, self.made = builder.emit, builder.lookup_binding
            fields = results_of(builder, body)
            names = list(func.attrs["gradients"])
            updates(self, dict(zip(names, fields[1:], strict=False)))
            for name, value in zip(func.attrs.get("state_updates", []), fields[1 + len(names) :], strict=True):
                self.assign(self.params[name], value, accumulate=False)
            return relax.Tuple([fields[0], *self.written])

        body = rewrite(func, result=with_updates)
        new = relax.Function(list(func.params) + self.new_params, body.body, body.ret_ty, True, func.attrs)
        new = new.without_attr("gradients").with_attr("states", self.states)
        return update_function(self.kernels.get(), self.function, new)

    def parameter(self, name: str, ty: relax.TensorType) -> relax.Var:
        """Add a parameter to the function."""
        self.new_params.append(relax.Var(name, ty))
        return self.new_params[-1]

    def state(self, slot: str, owner: str, ty: relax.TensorType) -> relax.Var:
        """Add a parameter that holds state of a network parameter, its ``owner``. The attribute ``states`` maps its
        name to ``[slot, owner]``."""
        name = f"{slot}.{owner}"
        self.states[name] = [slot, owner]
        return self.parameter(name, ty)

    def layout(self, name: str, piece: TrainedPart | None) -> update.Layout:
        """The layout of a parameter and its trained part, for an update kernel."""
        param = self.params[name]
        shape, dtype = shape_of(param), dtype_of(param)
        return (
            update.Layout(shape, dtype)
            if piece is None
            else update.Layout(shape, dtype, piece.axis, len(piece.indices))
        )

    def assign(self, target: relax.Var, value: Expr, *, accumulate: bool) -> None:
        """``target = value`` or ``target += value``."""
        kernel = update.assign(update.Layout(shape_of(target), dtype_of(target)), accumulate=accumulate)
        self._call("accumulate" if accumulate else "assign", kernel, [target, value], [0])

    def clear(self, target: relax.Var) -> None:
        """``target = 0``."""
        self._call("clear", update.clear(update.Layout(shape_of(target), dtype_of(target))), [target], [0])

    def write(
        self,
        kind: str,
        kernel: tirx.PrimFunc,
        name: str,
        operands: list[Expr],
        piece: TrainedPart | None,
        also: Sequence[int],
    ) -> None:
        """Call ``kernel(parameter, *operands[, channels])``, which writes the parameter and the arguments at positions
        ``also``."""
        args = [self.params[name], *operands]
        if piece is not None:
            args.append(relax.const(list(piece.indices), "int32"))
        self._call(kind, kernel, args, [0, *also])

    def _call(self, name: str, kernel: tirx.PrimFunc, args: list[Expr], indices: list[int]) -> None:
        gvar = self.kernels.add_func(kernel, name)
        types = [args[index].ty for index in indices]
        call = R.call_tir_inplace(gvar, relax.Tuple(args), indices, types if len(types) > 1 else types[0])
        self.written.append(self.emit(call))


def states_of(func: relax.Function) -> dict[str, tuple[str, str]]:
    """Read the attribute ``states`` of a function: the slot and owner of each state, by the state's name."""
    return {str(name): (str(slot), str(owner)) for name, (slot, owner) in func.attrs.get("states", {}).items()}
