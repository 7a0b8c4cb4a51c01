"""Binds the dynamic dimensions of an ONNX graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from ...errors import ModelError

Shapes = Mapping[str, Sequence[int]]
ANY_EXTENT = 2


def bind_inputs(model: onnx.ModelProto, batch: int | None, shapes: Shapes, *, any_shape: bool) -> onnx.ModelProto:
    """Copy the model, with static input shapes, and without initializers among the graph's inputs.

    ``batch`` binds the first dimension of the first input, ``shapes`` whole inputs by name; a named dimension is bound
    everywhere.

    Raises
    ------
    ModelError
        An input is no tensor, or a dimension stays dynamic, is bound twice or contradicts the file.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    initializers = {tensor.name for tensor in bound.graph.initializer}
    inputs = [value for value in bound.graph.input if value.name not in initializers]
    _check_names(inputs, shapes)
    symbols = _symbols(inputs, batch, shapes)
    for number, value in enumerate(inputs):
        tensor = value.type.tensor_type
        given = shapes.get(value.name)
        if not tensor.HasField("shape"):
            if given is None:
                raise ModelError(f"input '{value.name}' has no shape in the file: give it with {_how(value.name)}")
            tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in given)
        for axis, dim in enumerate(tensor.shape.dim):
            extent = _given(number, axis, value.name, batch, shapes)
            if dim.HasField("dim_value"):
                if extent is not None and extent != dim.dim_value:
                    raise ModelError(
                        f"dimension {axis} of input '{value.name}' is {dim.dim_value} in the model, not {extent}"
                    )
                extent = dim.dim_value
            extent = symbols.get(dim.dim_param) if extent is None else extent
            if extent is None and any_shape:
                extent = ANY_EXTENT
            if extent is None:
                how = "batch=" if number == axis == 0 else _how(value.name)
                raise ModelError(f"dimension {axis} of input '{value.name}' is dynamic: bind it with {how}")
            if extent < 1:
                raise ModelError(f"dimension {axis} of input '{value.name}' is {extent}: an input has at least one")
            dim.dim_value = extent
    bound.graph.ClearField("input")
    bound.graph.input.extend(inputs)
    return bound


def _check_names(inputs: Sequence[onnx.ValueInfoProto], shapes: Shapes) -> None:
    for value in inputs:
        if value.type.WhichOneof("value") != "tensor_type":
            raise ModelError(f"input '{value.name}' is no tensor: a training program takes tensors only")
    by_name = {value.name: value.type.tensor_type for value in inputs}
    for name, given in shapes.items():
        if name not in by_name:
            names = ", ".join(by_name)
            raise ModelError(f"shapes names '{name}', which is no input of the model; its inputs are {names}")
        if by_name[name].HasField("shape") and len(by_name[name].shape.dim) != len(given):
            count = len(by_name[name].shape.dim)
            raise ModelError(f"shapes gives {len(given)} dimensions for input '{name}', which has {count}")


def _symbols(inputs: Sequence[onnx.ValueInfoProto], batch: int | None, shapes: Shapes) -> dict[str, int]:
    """Map the named dimensions that the user has bound to their extents."""
    symbols: dict[str, int] = {}
    for number, value in enumerate(inputs):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            extent = _given(number, axis, value.name, batch, shapes)
            if dim.dim_param and extent is not None and symbols.setdefault(dim.dim_param, extent) != extent:
                raise ModelError(f"dimension '{dim.dim_param}' is bound to both {symbols[dim.dim_param]} and {extent}")
    return symbols


def _given(number: int, axis: int, name: str, batch: int | None, shapes: Shapes) -> int | None:
    if name in shapes:
        return int(shapes[name][axis])
    return batch if number == axis == 0 else None


def _how(name: str) -> str:
    return f"shapes={{'{name}': (…)}}"
