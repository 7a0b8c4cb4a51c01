"""What the front ends hand to the compiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from tvm import IRModule, relax

from relay_passes.ir import bindings_of, dtype_of, shape_of, used_vars

from ..errors import ModelError


@dataclass(frozen=True)
class TensorSpec:
    """The name, shape and NumPy element type of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class LookUp(NamedTuple):
    """A reading by index: of an axis of ``extent`` positions, where an index may count from the end or may not."""

    index: relax.Var
    extent: int
    from_end: bool


def in_order_of_use(main: relax.Function, names: Sequence[str]) -> tuple[str, ...]:
    """Parameters in the order in which a function first reads them; those that it never reads last."""
    order = dict.fromkeys(var.name for binding in bindings_of(main) for var in used_vars(binding.value))
    used = [name for name in order if name in set(names)]
    return tuple(used + [name for name in names if name not in order])


def result_specs(main: relax.Function, names: Sequence[str]) -> tuple[TensorSpec, ...]:
    """The outputs of a function, under the names that they have in the model."""
    types = main.ret_ty.fields if isinstance(main.ret_ty, relax.TupleType) else [main.ret_ty]
    if len(names) != len(types):
        names = [f"output{index}" for index in range(len(types))]
    return tuple(
        TensorSpec(name, tuple(int(extent) for extent in ty.shape), str(ty.dtype.dtype))
        for name, ty in zip(names, types, strict=True)
    )


@dataclass(frozen=True, eq=False)
class Model:
    """A forward module with its weights under PyTorch's names. It equals itself only.

    ``module`` has one function, ``main``: parameters are the inputs, then every floating-point parameter and persistent
    buffer, each named as in PyTorch and in PyTorch's layout; it returns the outputs. All shapes are static.
    """

    module: IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: dict[str, np.ndarray]
    """All parameters and persistent buffers by name, in PyTorch's layout."""
    parameters: tuple[str, ...]
    """The floating-point parameters, in the order in which the network first uses them."""
    requires_grad: dict[str, bool] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    """Further names of shared parameters: tied weights."""
    mutated: tuple[str, ...] = ()
    """The buffers that the model writes in its forward pass, in PyTorch."""
    source: Any = None
    """What the model was imported from, with every dimension bound."""
    look_ups: tuple[LookUp, ...] = ()
    """What is read by index, beside ``relax.take`` of what an input holds."""
    values: dict[str, str] = field(default_factory=dict)
    """For each node of PyTorch's graph, taken apart, the variable of ``module`` that holds its value."""

    def __post_init__(self) -> None:
        """Refuse a parameter that has no value of its shape and type, and a weight that nothing takes.

        Raises
        ------
        ModelError
            Importing lost a weight or changed its name: no program may be made of what is left.
        """
        params = {param.name: param for param in self.module["main"].params[len(self.inputs) :]}
        for name, param in params.items():
            array = self.weights.get(name)
            if array is None:
                raise ModelError(f"parameter '{name}' of the imported model has no value; please report this model")
            if (array.shape, array.dtype.name) != (shape_of(param), dtype_of(param)):
                raise ModelError(
                    f"the value of parameter '{name}' is {array.dtype.name}{list(array.shape)}, the imported model "
                    f"takes {dtype_of(param)}{list(shape_of(param))}; please report this model"
                )
        for name in self.weights:
            if name not in params and self.weights[name].dtype.kind == "f":
                raise ModelError(f"the imported model has no place for the weight '{name}'; please report this model")
