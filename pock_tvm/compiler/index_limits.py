"""Finds the valid indices of inputs, which a trainer checks before a step."""

from __future__ import annotations

from tvm import relax

from relay_passes.ir import Constant, bindings_of, op_name, shape_of
from relay_passes.operators.registry import plain

from ..frontend import LookUp, Model
from ..frontend.structure import inputs_of


def index_limits(model: Model) -> dict[str, tuple[int, int]]:
    """Return, for each integer input used as an index, the lowest valid index and the number of positions."""
    func = model.module["main"]
    origin = inputs_of(func, len(model.inputs))
    limits: dict[str, tuple[int, int]] = {}
    for index, extent, from_end in [*model.look_ups, *_takes(func)]:
        if index in origin:
            lowest, count = limits.get(origin[index], (-extent, extent))
            limits[origin[index]] = (max(lowest, -extent if from_end else 0), min(count, extent))
    return limits


def _takes(func: relax.Function) -> list[LookUp]:
    """Return the look-ups in tables that are not constant."""
    found = []
    for binding in bindings_of(func):
        value = binding.value
        if op_name(value) == "relax.take" and not isinstance(value.args[0], Constant):
            axis = plain(value.attrs.axis)
            if isinstance(value.args[1], relax.Var):
                found.append(LookUp(value.args[1], shape_of(value.args[0])[axis or 0], False))
    return found
