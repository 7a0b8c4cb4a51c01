"""Converts an exported program of half or double precision to float32."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.utils import _pytree as pytree

HALVES = (torch.float16, torch.bfloat16)


def converted_types(exported: ExportedProgram) -> list[torch.dtype]:
    """List the types that a program's numbers are converted from: half precision wherever weights, constants or inputs
    have it, double precision where trainable weights do. Double precision around weights of float32 stays."""
    tensors = [*exported.state_dict.values(), *exported.constants.values(), *_inputs(exported)]
    found = (tensor.dtype for tensor in tensors if isinstance(tensor, torch.Tensor))
    is_double = any(weight.dtype == torch.float64 for weight in exported.parameters())
    converted = (*HALVES, torch.float64) if is_double else HALVES
    return [dtype for dtype in dict.fromkeys(found) if dtype in converted]


def in_float32(exported: ExportedProgram, types: Collection[torch.dtype], aliases: dict[str, str]) -> ExportedProgram:
    """Export a program again with weights, inputs and conversions of some types in float32. ``aliases``: names of tied
    weights."""

    def converted(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype in types else tensor

    module = copy.deepcopy(exported.module(check_guards=False))  # it shares the user's tensors
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            with_types(part, types, torch.float32)
            for name, value in list(vars(part).items()):
                if isinstance(value, torch.Tensor):
                    setattr(part, name, converted(value))
            part.recompile()
    module = module._apply(converted)
    for alias, owner in aliases.items():  # the change of type has untied what is tied
        path, _, leaf = alias.rpartition(".")
        setattr(module.get_submodule(path), leaf, module.get_parameter(owner))
    values = [converted(value) if isinstance(value, torch.Tensor) else value for value in example_inputs(exported)]
    args, kwargs = pytree.tree_unflatten(values, exported.call_spec.in_spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, args, kwargs, strict=False)


def example_inputs(exported: ExportedProgram) -> list[Any]:
    """Zeros in the shape of each input of the user's, and inputs that the export made constant."""
    return [
        torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, torch.Tensor) else value
        for value in _inputs(exported)
    ]


def _inputs(exported: ExportedProgram) -> Iterator[Any]:
    """The inputs of the user's: tensors without storage, and constants."""
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            yield nodes[spec.arg.name].meta["val"] if isinstance(spec.arg, TensorArgument) else spec.arg.value


def with_types(part: torch.fx.GraphModule, types: Collection[torch.dtype], other: torch.dtype) -> None:
    """Replace some types in a graph by another one, and drop assertions on the exported types."""

    def replaced(value: Any) -> Any:
        return other if isinstance(value, torch.dtype) and value in types else value

    for node in list(part.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            part.graph.erase_node(node)
        elif node.op == "call_function":
            node.args = torch.fx.node.map_aggregate(node.args, replaced)
            node.kwargs = torch.fx.node.map_aggregate(node.kwargs, replaced)
