"""Stores a parameter in the layout in which it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..ir import Expr, bindings_of, eliminate_dead, op_name, rewrite, shape_of, update_function, used_vars
from ..ir.trained_part import TrainedPart
from ..operators.record import Kind, kind_of
from ..operators.registry import plain


@dataclass(frozen=True)
class Stored:
    """How a parameter is stored: its array, reshaped to ``shape`` and with its axes permuted to ``axes``."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def position(self, axis: int, original: Sequence[int]) -> int:
        """Where an axis of the original array lies in the stored one."""
        before = math.prod(original[:axis])
        candidates = range(len(self.shape))
        reshaped = next(
            i for i in candidates if math.prod(self.shape[:i]) == before and self.shape[i] == original[axis]
        )
        return self.axes.index(reshaped)


@tvm.transform.module_pass(opt_level=0, name="StorePermuted")
@dataclass(frozen=True)
class StorePermuted:
    """Move the transpose of a parameter from the function to whoever stores the parameter.

    In: a dataflow function. Out: each of ``parameters`` that is read only through one and the same ``permute_dims``
    (perhaps of a reshape) has the permuted shape, and the attribute ``stored`` gives ``[shape, axes]`` of
    :class:`Stored` for each. Linear weights so become [in, out] and convolution weights [R, S, I, O], and their
    gradients and updates run along contiguous channels.
    """

    parameters: Sequence[str]
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        stored, readers = _common_permutations(func, set(self.parameters))
        new_params: list[relax.Var] = []
        env: dict[relax.Var, Expr] = {}
        for param in func.params:
            new = param
            if param.name in stored:
                how = stored[param.name]
                new = relax.Var(
                    param.name, relax.TensorType([how.shape[axis] for axis in how.axes], param.ty.dtype.dtype)
                )
                env |= dict.fromkeys(readers[param.name], new)
            new_params.append(new)

        def visit(_builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            return env.get(var, value)

        new_func = eliminate_dead(rewrite(func, visit, params=new_params))
        return update_function(
            mod,
            self.function,
            new_func.with_attr("stored", {name: [how.shape, how.axes] for name, how in stored.items()}),
        )


def stored_of(func: relax.Function) -> dict[str, Stored]:
    """The attribute ``stored`` of a function, in plain values."""
    return {str(name): Stored(*(plain(part) for part in how)) for name, how in func.attrs.get("stored", {}).items()}


def stored_parts(
    func: relax.Function, trained: Mapping[str, TrainedPart | None], shapes: Mapping[str, Sequence[int]]
) -> dict[str, TrainedPart | None]:
    """Trained parts along the axes of the parameters as a function stores them.

    ``trained`` has them along the axes of arrays of these ``shapes``.
    """
    stored = stored_of(func)
    return {
        name: TrainedPart(stored[name].position(part[0], shapes[name]), part[1])
        if part is not None and name in stored
        else part
        for name, part in trained.items()
    }


def _common_permutations(func: relax.Function, names: set[str]) -> tuple[dict[str, Stored], dict[str, list[relax.Var]]]:
    """How each parameter that all uses read in the same way is read, and the variables that hold the permuted value."""
    wanted = {param: param.name for param in func.params if param.name in names}
    views: dict[relax.Var, tuple[str, tuple[int, ...]]] = {
        param: (name, shape_of(param)) for param, name in wanted.items()
    }
    found: dict[str, set[Stored | None]] = {}
    readers: dict[str, list[relax.Var]] = {}
    for binding in bindings_of(func):
        value = binding.value
        for var in used_vars(value):
            if var not in views:
                continue
            name, shape = views[var]
            if kind_of(value) is Kind.RESHAPE:
                views[binding.var] = (name, shape_of(binding.var))
            elif op_name(value) == "relax.permute_dims":
                axes = plain(value.attrs.axes) or tuple(reversed(range(len(shape))))
                found.setdefault(name, set()).add(Stored(shape, tuple(axis % len(shape) for axis in axes)))
                readers.setdefault(name, []).append(binding.var)
            else:
                found.setdefault(name, set()).add(None)
    stored = {name: way for name, ways in found.items() for way in ways if way is not None and len(ways) == 1}
    return stored, readers
