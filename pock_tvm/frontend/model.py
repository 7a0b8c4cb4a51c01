"""The imported model: the interface between front ends and compiler."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tvm import IRModule, relax

from relay_passes.analysis.stated_scales import StatedScales
from relay_passes.ir import bindings_of, dtype_of, shape_of, used_vars

from ..device.parameters import Parameter
from ..errors import ModelError

if TYPE_CHECKING:
    from .custom_loss import CustomLoss


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and NumPy element type of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class LookUp(NamedTuple):
    """A read by index along an axis of ``extent`` positions; with ``from_end``, negative indices count from the end."""

    index: relax.Var
    extent: int
    from_end: bool


class OwnBackward(NamedTuple):
    """A ``torch.autograd.Function`` with a backward pass that may not be the derivative of its forward pass."""

    name: str
    layer: str
    """Path of the module that calls it."""
    parameters: frozenset[str]
    """Names of the parameters that its arguments depend on."""
    differs: bool
    """Whether it was tried, and is not the derivative."""


def records_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Parameter]:
    """Make the records of a model's parameters and buffers from their values, in PyTorch's layout."""
    return {name: Parameter(name, array.shape, str(array.dtype), initial=array) for name, array in arrays.items()}


def in_order_of_use(main: relax.Function, names: Sequence[str]) -> tuple[str, ...]:
    """Sort parameters by their first use in a function; unused ones come last."""
    order = dict.fromkeys(var.name for binding in bindings_of(main) for var in used_vars(binding.value))
    used = [name for name in order if name in set(names)]
    return tuple(used + [name for name in names if name not in order])


def result_specs(main: relax.Function, names: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Describe the outputs of a function, by their names in the model."""
    types = main.ret_ty.fields if isinstance(main.ret_ty, relax.TupleType) else [main.ret_ty]
    if len(names) != len(types):
        names = [f"output{index}" for index in range(len(types))]
    return tuple(
        TensorSpec(name, tuple(int(extent) for extent in ty.shape), str(ty.dtype.dtype))
        for name, ty in zip(names, types, strict=True)
    )


@dataclass(frozen=True, eq=False)
class Model:
    """A forward module and the records of its parameters, under PyTorch's names. Compared by identity.

    ``module`` has one function, ``main``: parameters are the inputs, then every floating-point parameter and persistent
    buffer with elements, and integer ones that stand for more bytes of floats, each named as in PyTorch and in
    PyTorch's layout; it returns the outputs. All shapes are static.
    """

    module: IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: dict[str, Parameter]
    """Records of all parameters and persistent buffers, by name, with their initial values."""
    trainable: tuple[str, ...]
    """Names of the floating-point parameters, in the order of first use."""
    requires_grad: dict[str, bool] = field(default_factory=dict)
    """Whether PyTorch trains each of ``trainable``."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Tied weights: further names of shared parameters, with the name that owns the value."""
    mutated: tuple[str, ...] = ()
    """Buffers that the model writes in its forward pass in PyTorch."""
    source: Any = None
    """The ExportedProgram or ModelProto that was imported, with every dimension bound."""
    look_ups: tuple[LookUp, ...] = ()
    """Reads by index, except ``relax.take`` with an input as index."""
    stated: StatedScales = field(default_factory=StatedScales)
    """Scales that a quantised model states. ``module`` computes in float, with the weights that its integers mean."""
    custom_loss: CustomLoss | None = None
    """A loss function of the user's. ``module`` then has the function ``loss``."""
    converted: tuple[str, ...] = ()
    """Types of half and double precision whose numbers were converted to float32."""
    functions: tuple[OwnBackward, ...] = ()
    """Functions whose backward passes the export has left out, as far as it shows."""
    hooked: tuple[str, ...] = ()
    """Parameters whose gradient passes a hook in PyTorch (``register_hook``), which no export has."""
    values: dict[str, str] = field(default_factory=dict)
    """For each node of PyTorch's decomposed graph, the variable of ``module`` that holds its value."""

    def __post_init__(self) -> None:
        """Check that every parameter of ``main`` has a record of its shape and type, and every record a parameter.

        Raises
        ------
        ModelError
            The import lost a weight or changed its name.
        """
        params = {param.name: param for param in self.module["main"].params[len(self.inputs) :]}
        for name, param in params.items():
            record = self.parameters.get(name)
            if record is None:
                raise ModelError(f"parameter '{name}' of the imported model has no value; please report this model")
            if (record.shape, record.dtype) != (shape_of(param), dtype_of(param)):
                raise ModelError(
                    f"the value of parameter '{name}' is {record.dtype}{list(record.shape)}, the imported model "
                    f"takes {dtype_of(param)}{list(shape_of(param))}; please report this model"
                )
        for name, record in self.parameters.items():
            if name not in params and np.dtype(record.dtype).kind == "f" and 0 not in record.shape:
                raise ModelError(f"the imported model has no place for the weight '{name}'; please report this model")

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Initial values of all parameters and persistent buffers, by name, in PyTorch's layout."""
        return {name: record.initial for name, record in self.parameters.items() if record.initial is not None}
