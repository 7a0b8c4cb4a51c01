"""Stores a parameter in the layout in which it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import tvm
from tvm import IRModule, relax

from ..ir import Expr, bindings_of, eliminate_dead, op_name, rewrite, shape_of, update_function, used_vars
from ..ir.trained_part import TrainedPart
from ..operators.record import Kind, kind_of
from ..operators.registry import plain

Stored: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""The stored layout of a parameter: the shape to which its array is reshaped, and the order of its axes then."""


@tvm.transform.module_pass(opt_level=0, name="StorePermuted")
@dataclass(frozen=True)
class StorePermuted:
    """Move the transpose of a parameter out of the function, to the code that stores the parameter.

    In: a dataflow function. Out: each of ``parameters`` whose reads are all the same ``permute_dims`` (perhaps of a
    reshape), or the same reshape that moves axes of extent 1, has the permuted shape. The attribute ``stored`` gives
    its ``[shape, axes]``: the shape of that reshape, and the permutation. So linear weights become [in, out] and
    convolution weights [R, S, I, O], and their gradients and updates run along contiguous channels.
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
                shape, axes = stored[param.name]
                new = relax.Var(param.name, relax.TensorType([shape[axis] for axis in axes], param.ty.dtype.dtype))
                env |= dict.fromkeys(readers[param.name], new)
            new_params.append(new)

        def visit(_builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            return env.get(var, value)

        new_func = eliminate_dead(rewrite(func, visit, params=new_params))
        return update_function(mod, self.function, new_func.with_attr("stored", stored))


def stored_of(func: relax.Function) -> dict[str, Stored]:
    """Read the attribute ``stored`` of a function: the layout of each parameter that has one."""
    return {str(name): (plain(shape), plain(axes)) for name, (shape, axes) in func.attrs.get("stored", {}).items()}


def stored_parts(
    func: relax.Function, trained: Mapping[str, TrainedPart | None], shapes: Mapping[str, Sequence[int]]
) -> dict[str, TrainedPart | None]:
    """Trained parts along the axes of the parameters as a function stores them.

    ``trained`` has them along the axes of arrays of these ``shapes``.
    """
    stored = stored_of(func)
    return {
        name: _stored_part(stored[name], part, shapes[name]) if part is not None and name in stored else part
        for name, part in trained.items()
    }


def _stored_part(layout: Stored, part: TrainedPart, original: Sequence[int]) -> TrainedPart:
    """Map a part of the array of shape ``original`` to the stored array, where axes behind it may have joined its
    axis."""
    (shape, axes), (axis, indices) = layout, part
    before, extent = math.prod(original[:axis]), original[axis]
    found = [(at, size // extent) for at, size in enumerate(shape) if math.prod(shape[:at]) == before]
    at, joined = next((at, joined) for at, joined in found if shape[at] == extent * joined)
    return TrainedPart(axes.index(at), tuple(index * joined + each for index in indices for each in range(joined)))


def _common_permutations(func: relax.Function, names: set[str]) -> tuple[dict[str, Stored], dict[str, list[relax.Var]]]:
    """Find the layout of each parameter that every read permutes equally, and the variables with its permuted value."""
    original = {param.name: shape_of(param) for param in func.params if param.name in names}
    views: dict[relax.Var, tuple[str, tuple[int, ...]]] = {
        param: (param.name, shape_of(param)) for param in func.params if param.name in names
    }
    layouts: dict[str, set[Stored | None]] = {}
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
                layouts.setdefault(name, set()).add((shape, tuple(axis % len(shape) for axis in axes)))
                readers.setdefault(name, []).append(binding.var)
            elif shape != original[name] and _moves_only_ones(original[name], shape):
                layouts.setdefault(name, set()).add((shape, tuple(range(len(shape)))))
                readers.setdefault(name, []).append(var)
            else:
                layouts.setdefault(name, set()).add(None)
    stored = {name: only for name, (only, *others) in layouts.items() if only is not None and not others}
    return stored, readers


def _moves_only_ones(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a reshape of a matrix, or of more axes, keeps all extents but those of 1."""
    return len(shape) > 1 and [extent for extent in shape if extent > 1] == [extent for extent in other if extent > 1]
