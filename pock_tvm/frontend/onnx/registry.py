"""The registry of converters; a node's inputs and attributes are bound to a converter's signature.

A converter is a function ``(node, inputs…, *, attributes…)`` with the names of the operator's schema. Inputs annotated
``Known`` must be constants and are passed as arrays, others as Relax expressions. An input or attribute that is not in
the signature must have its default value, else the node is refused by name: nothing is ignored.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx.defs import OpSchema
from tvm import relax

from relay_passes.ir import Expr

from ...errors import ModelError

Known: TypeAlias = np.ndarray
Converter: TypeAlias = Callable[..., Any]


class Unsupported(Exception):
    """An unsupported input or attribute; the message is a predicate, whose subject (the node) the catcher adds."""


@dataclass(frozen=True)
class Node:
    """A node to convert."""

    proto: onnx.NodeProto
    schema: OpSchema
    builder: relax.BlockBuilder
    name: str
    """Prefix of the names of its values."""
    inputs: frozenset[relax.Var]
    """Inputs of the model."""

    @property
    def version(self) -> int:
        """Operator set in which the operator last changed."""
        return self.schema.since_version

    def emit(self, expr: Expr) -> relax.Var:
        """Bind an expression to a variable, which gives it a type."""
        return self.builder.emit(expr, self.name)

    def is_input(self, value: Expr) -> bool:
        """Check whether a value is an input of the model."""
        return isinstance(value, relax.Var) and value in self.inputs

    def wants(self, output: int) -> bool:
        """Check whether an output is read."""
        return output < len(self.proto.output) and bool(self.proto.output[output])


@dataclass(frozen=True)
class _Entry:
    function: Converter
    inputs: tuple[str, ...]
    known: frozenset[str]
    required: frozenset[str]
    variadic: str | None
    attributes: frozenset[str]


_CONVERTERS: dict[str, _Entry] = {}


def converter(*operators: str) -> Callable[[Converter], Converter]:
    """Register a converter for operators of the domain ``ai.onnx``."""

    def register(function: Converter) -> Converter:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        hints = typing.get_type_hints(function)
        kinds = inspect.Parameter
        inputs = [p for p in parameters if p.kind is kinds.POSITIONAL_OR_KEYWORD]
        entry = _Entry(
            function,
            tuple(p.name for p in inputs),
            frozenset(p.name for p in parameters if hints[p.name] in (Known, Known | None)),
            frozenset(p.name for p in inputs if p.default is kinds.empty),
            next((p.name for p in parameters if p.kind is kinds.VAR_POSITIONAL), None),
            frozenset(p.name for p in parameters if p.kind is kinds.KEYWORD_ONLY),
        )
        _CONVERTERS.update(dict.fromkeys(operators, entry))
        return function

    return register


def has_converter(schema: OpSchema) -> bool:
    """Check whether an operator has a converter."""
    return schema.domain == "" and schema.name in _CONVERTERS


def convert(node: Node, inputs: Sequence[Any]) -> list[Expr | np.ndarray | None]:
    """Convert a node; inputs are arrays, expressions, or None for an omitted one.

    Raises
    ------
    Unsupported
        The converter does not support an input, an attribute, or an output that is read.
    """
    entry = _CONVERTERS[node.schema.name]
    arguments: list[Any] = []
    for position, value in enumerate(inputs):
        name = entry.inputs[position] if position < len(entry.inputs) else entry.variadic
        if name is None:
            if value is not None:
                raise Unsupported(f"its input '{_input_name(node.schema, position)}' is not supported")
            continue
        if value is None and name in entry.required:
            raise Unsupported(f"its input '{_input_name(node.schema, position)}' is missing")
        arguments.append(_argument(_input_name(node.schema, position), value, known=name in entry.known))
    if len(arguments) < len(entry.required):
        raise Unsupported(f"it has {len(arguments)} inputs and needs {len(entry.required)}")
    results = entry.function(node, *arguments, **_attributes(node, entry.attributes))
    results = list(results) if isinstance(results, tuple | list) else [results]
    for position, name in enumerate(node.proto.output):
        if name and position >= len(results):
            raise Unsupported(f"its output {position} ('{name}') is not supported")
    return results


def _argument(name: str, value: Any, *, known: bool) -> Any:
    if value is None:
        return None
    if not isinstance(value, relax.Expr | np.ndarray):
        raise Unsupported(f"its input '{name}' is no tensor")
    if known:
        if not isinstance(value, np.ndarray):
            raise Unsupported(f"its input '{name}' is computed from the model's inputs; it has to be a constant")
        return value
    return expression(value)


def expression(value: Expr | np.ndarray) -> Expr:
    """Convert an array to a constant; return an expression unchanged."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
        raise Unsupported(f"it reads a constant of type {value.dtype}")
    return relax.const(np.ascontiguousarray(value).reshape(value.shape), value.dtype.name)


def _input_name(schema: OpSchema, position: int) -> str:
    return schema.inputs[position].name if position < len(schema.inputs) else str(position)


def _attributes(node: Node, taken: frozenset[str]) -> dict[str, Any]:
    """Collect a converter's attributes: the node's, else the schema's defaults; others must have their defaults."""
    values = {attribute.name: attribute_value(attribute) for attribute in node.proto.attribute}
    defaults = {
        name: attribute_value(attribute.default_value)
        for name, attribute in node.schema.attributes.items()
        if attribute.default_value.type != onnx.AttributeProto.UNDEFINED
    }
    for name, value in values.items():
        if name not in taken and not (name in defaults and defaults[name] == value):
            raise Unsupported(f"its attribute '{name}' with the value {value} is not supported")
    return {name: value for name, value in (defaults | values).items() if name in taken}


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """Convert an attribute to a plain Python value, a tensor to an array."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [each.decode("utf-8", "replace") for each in value]
    return list(value) if attribute.type in _LISTS else value


_LISTS = frozenset({onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS})


def refuse(condition: Any, reason: str) -> None:
    """Raise :class:`Unsupported` with a reason if a condition holds."""
    if condition:
        raise Unsupported(reason)


def error_of(proto: onnx.NodeProto, reason: str) -> ModelError:
    """Build the error for a node that cannot be imported."""
    where = f" '{proto.name}'" if proto.name else ""
    results = ", ".join(name for name in proto.output if name)
    return ModelError(f"operator {proto.op_type} (node{where}, which makes {results}) cannot be imported: {reason}")
