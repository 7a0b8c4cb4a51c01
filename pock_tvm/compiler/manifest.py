"""Builds the records of a manifest: arrays that a trainer keeps, and valid indices of inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tvm import relax

from relay_passes.canonical.store_permuted import Stored
from relay_passes.ir import Constant, append, bindings_of, dtype_of, op_name, shape_of
from relay_passes.ir.append import states_of
from relay_passes.ir.trained_part import Trained
from relay_passes.kernels.lift_frozen import prepared_name
from relay_passes.memory.call_list import CallList
from relay_passes.operators.registry import plain

from ..device.parameters import (
    FROZEN,
    FULL,
    GRADIENT_SUM,
    MODEL,
    OPTIMIZER,
    PREPARED,
    STATISTICS,
    Layout,
    Parameter,
)  # fmt: skip
from ..frontend import LookUp, Model
from ..frontend.structure import inputs_of


def weight_records(
    model: Model, trained: Trained, stored: Mapping[str, Stored], statistics: Collection[str]
) -> list[Parameter]:
    """Return the records of the model's parameters and buffers.

    ``trained`` maps trained parameters to their trained parts in PyTorch's layout (None if whole), ``stored`` maps
    parameters stored in another layout to that layout. ``statistics`` names the buffers that a training step updates.
    """
    records = []
    for name, array in model.weights.items():
        what: Any = STATISTICS if name in statistics else FROZEN
        if name in trained:
            part = trained[name]
            what = FULL if part is None else {"axis": part.axis, "indices": list(part.indices)}
        layout = Layout(stored[name].shape, stored[name].axes) if name in stored else None
        records.append(Parameter(name, array.shape, str(array.dtype), MODEL, what, layout))
    return records


def state_records(step: relax.Function) -> list[Parameter]:
    """Return the records of optimizer state and gradient sums among the parameters of a training step."""
    params, records = {param.name: param for param in step.params}, []
    for name, (slot, of) in states_of(step).items():
        shape, dtype = shape_of(params[name]), dtype_of(params[name])
        is_sum = slot == append.GRADIENT_SUM
        origin = GRADIENT_SUM if is_sum else OPTIMIZER
        records.append(Parameter(name, shape, dtype, origin, of=of, slot="" if is_sum else slot))
    return records


def prepared_records(prepare: CallList) -> list[Parameter]:
    """Return the records of the arrays that the entry point ``prepare`` computes from frozen parameters."""
    results = [tensor for tensor in prepare.table if tensor.name.startswith("result.")]
    return [Parameter(prepared_name(at), each.shape, each.dtype, PREPARED) for at, each in enumerate(results)]


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
