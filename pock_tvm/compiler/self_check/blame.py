"""Finds the first layer whose forward value differs from the reference's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from tvm import relax

from relay_passes.ir import bindings_of, is_float, results_of, rewrite, shape_of, update_function
from relay_passes.ir.places import place_of

from ...device.program import Program
from ...device.trainer import Trainer
from ...frontend import Model
from .agreement import Difference, difference
from .measured import Batch, Reference, Weights


def first_wrong_layer(
    model: Model,
    reference: Reference,
    weights: Weights,
    batch: Batch,
    compile_model: Callable[[Model], Program],
) -> tuple[str, Difference] | None:
    """Find the first layer whose last value differs from the reference's, and the difference.

    Compiles and runs a program that also returns the last value of every layer. None where all layers agree: the fault
    then shows only without these outputs, or lies in no layer.
    """
    expected = reference.layers(weights, batch)
    ends = {name: var for name, var in _layer_ends(model).items() if name in expected}
    ends = {name: var for name, var in ends.items() if shape_of(var) == expected[name].shape}
    if not ends:
        return None

    @functools.cache
    def exact() -> dict[str, np.ndarray]:
        return reference.layers(weights, batch, precise=True)

    trainer = Trainer(compile_model(_returning(model, list(ends.values()))))
    trainer.load_state_dict(weights)
    outputs = trainer.predict(batch.inputs)
    for name, ours in zip(ends, outputs[len(model.outputs) :], strict=True):
        differs = difference(ours, expected[name], exact=lambda name=name: exact()[name])  # type: ignore[misc]
        if differs is not None:
            return name, differs
    return None


def _layer_ends(model: Model) -> dict[str, relax.Var]:
    """The last floating-point value of each layer by the module's path, in the order of these values."""
    ends: dict[str, relax.Var] = {}
    for binding in bindings_of(model.module["main"]):
        name = place_of("", binding.var.name).layer
        ends.pop(name, None)
        if isinstance(binding.var.ty, relax.TensorType) and is_float(binding.var):
            ends[name] = binding.var
    return ends


def _returning(model: Model, values: list[relax.Var]) -> Model:
    """Add values to a model's outputs."""
    env: dict[relax.Var, relax.Expr] = {}

    def keep(builder: relax.BlockBuilder, var: relax.Var, value: relax.Expr) -> relax.Expr:
        new = value if isinstance(value, relax.Var | relax.Tuple) else builder.emit(value, var.name)
        env[var] = new
        return new

    def with_values(builder: relax.BlockBuilder, body: relax.Expr) -> relax.Expr:
        return relax.Tuple([*results_of(builder, body), *(env[value] for value in values)])

    main = rewrite(model.module["main"], keep, result=with_values)
    specs = tuple(
        type(model.outputs[0])(f"layer{number}", shape_of(value), str(value.ty.dtype.dtype))
        for number, value in enumerate(values)
    )
    return replace(model, module=update_function(model.module, "main", main), outputs=(*model.outputs, *specs))
