"""Computes at import what depends on no input and no parameter: masks, positions, rotary tables."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.utils import _pytree as pytree

LARGEST = 1 << 24  # elements of a table that is worth storing


def fold_constants(exported: ExportedProgram) -> ExportedProgram:
    """Replace every node that depends on constants alone by its value, computed by PyTorch itself.

    What was only repeated by broadcasting is stored once and broadcast again.
    """
    signature = exported.graph_signature
    values = _constant_inputs(exported)
    graph = exported.graph_module.graph
    for node in graph.nodes:
        if node.op == "call_function" and _is_foldable(node, values):
            args, kwargs = pytree.tree_map(
                lambda arg: values.get(arg, arg) if _is_node(arg) else arg, (node.args, node.kwargs)
            )
            values[node] = node.target(*args, **kwargs)

    specs, constants = list(signature.input_specs), dict(exported.constants)
    first = next(node for node in graph.nodes if node.op == "placeholder")
    for node in list(graph.nodes):
        value = values.get(node)
        if (
            node.op != "call_function"
            or not isinstance(value, torch.Tensor)
            or all(user in values for user in node.users)
        ):
            continue
        stored = _without_repetition(value)
        if stored.numel() > LARGEST:
            continue
        name = f"folded_{node.name}"
        with graph.inserting_before(first):
            placeholder = graph.placeholder(name)
        placeholder.meta["val"] = stored
        specs.insert(0, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(placeholder.name), name))
        constants[name] = stored
        replacement = placeholder
        if stored.shape != value.shape:
            with graph.inserting_before(node):
                replacement = graph.call_function(torch.ops.aten.expand.default, (placeholder, list(value.shape)))
            replacement.meta["val"] = value
        node.replace_all_uses_with(replacement)
    graph.eliminate_dead_code()
    exported.graph_module.recompile()
    return ExportedProgram(
        root=exported.graph_module,
        graph=graph,
        graph_signature=ExportGraphSignature(_in_order(graph, specs), signature.output_specs),
        state_dict=exported.state_dict,
        range_constraints=exported.range_constraints,
        module_call_graph=exported.module_call_graph,
        constants=constants,
    )


def _is_node(value: Any) -> bool:
    return isinstance(value, torch.fx.Node)


def _constant_inputs(exported: ExportedProgram) -> dict[Any, torch.Tensor]:
    """The placeholders whose values never change: constants, integer buffers, buffers that no state holds."""
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    state = exported.state_dict
    values: dict[Any, torch.Tensor] = {}
    for node in exported.graph.nodes:
        spec = specs.get(node.name) if node.op == "placeholder" else None
        if spec is None or spec.target is None:
            continue
        if spec.kind is InputKind.CONSTANT_TENSOR or (spec.kind is InputKind.BUFFER and not spec.persistent):
            values[node] = exported.constants[spec.target]
        elif spec.kind is InputKind.BUFFER and not state[spec.target].is_floating_point():
            values[node] = state[spec.target]
    return values


def _is_foldable(node: Any, values: dict[Any, Any]) -> bool:
    if any(source not in values for source in node.all_input_nodes):
        return False
    if node.target is operator.getitem:
        return True
    tags = getattr(node.target, "tags", ())
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded not in tags


def _without_repetition(value: torch.Tensor) -> torch.Tensor:
    """The part of an expanded tensor that it has in memory."""
    for axis, (stride, extent) in enumerate(zip(value.stride(), value.shape, strict=True)):
        if stride == 0 and extent > 1:
            value = value.narrow(axis, 0, 1)
    return value.contiguous()


def _in_order(graph: Any, specs: list[InputSpec]) -> list[InputSpec]:
    """Input specs in the order of their placeholders."""
    by_name = {spec.arg.name: spec for spec in specs}
    return [by_name[node.name] for node in graph.nodes if node.op == "placeholder"]
