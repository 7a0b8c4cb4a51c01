"""Fills in parameter records on their way through the phases, and adds those of arrays that phases introduce."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from tvm import IRModule, relax

from relay_passes.canonical.store_permuted import stored_of
from relay_passes.ir import append, dtype_of, shape_of, stored_as
from relay_passes.ir.append import states_of
from relay_passes.kernels.lift_frozen import PREPARE, prepared_name

from ..device.parameters import GRADIENT_SUM, OPTIMIZER, PREPARED, STATISTICS, Layout, Parameter
from ..frontend.model import result_specs

Parameters = Mapping[str, Parameter]
"""Records by name, which is that of the parameter of every function that takes it."""


def with_layouts(parameters: Parameters, func: relax.Function) -> Parameters:
    """Phase 2: fill in the layouts in which a function stores parameters."""
    layouts = {name: Layout(*stored) for name, stored in stored_of(func).items()}
    return {name: replace(record, layout=layouts.get(name)) for name, record in parameters.items()}


def without(parameters: Parameters, names: Collection[str]) -> Parameters:
    """Phase 2: drop the records of weights that are constants of eight bits now."""
    return {name: record for name, record in parameters.items() if name not in names}


def with_states(parameters: Parameters, step: relax.Function) -> Parameters:
    """Phase 5: mark the running statistics that a training step updates; add optimizer state and gradient sums."""
    statistics = {str(name) for name in step.attrs.get("state_updates", [])}
    records = {
        name: replace(record, trained=STATISTICS) if name in statistics else record
        for name, record in parameters.items()
    }
    params = {param.name: param for param in step.params}
    for name, (slot, of) in states_of(step).items():
        shape, dtype = shape_of(params[name]), dtype_of(params[name])
        is_sum = slot == append.GRADIENT_SUM
        origin = GRADIENT_SUM if is_sum else OPTIMIZER
        records[name] = Parameter(name, shape, dtype, origin, of=of, slot="" if is_sum else slot)
    return records


def with_prepared(parameters: Parameters, mod: IRModule) -> Parameters:
    """Phase 6: add the arrays that the function ``prepare`` computes from frozen parameters."""
    prepare = mod[PREPARE]
    specs = result_specs(prepare, [prepared_name(at) for at in range(len(prepare.ret_ty.fields))])
    return {**parameters} | {
        spec.name: Parameter(spec.name, spec.shape, stored_as(spec.dtype), PREPARED) for spec in specs
    }
