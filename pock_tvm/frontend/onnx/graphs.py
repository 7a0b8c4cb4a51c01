"""Nodes and types of ONNX graphs: what a node reads, which nodes are needed, copies under other names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx


def reaching(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """Select the nodes that the wanted values depend on, in the given order."""
    wanted, kept = set(wanted), []
    for node in reversed(nodes):
        if wanted.isdisjoint(node.output):
            continue
        kept.append(node)
        wanted |= _reads(node)
    return kept[::-1]


def _reads(node: onnx.NodeProto) -> set[str]:
    """Collect the names that a node reads, its subgraphs included."""
    names, pending = set(), [node]
    while pending:
        current = pending.pop()
        names |= set(current.input)
        for graph in _graphs(current):
            names |= {value.name for value in graph.output}
            pending.extend(graph.node)
    return names - {""}


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """List the graphs among a node's attributes."""
    return [
        graph
        for attribute in node.attribute
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    ]


def has_graph(node: onnx.NodeProto) -> bool:
    """Check whether a node has a graph among its attributes."""
    return bool(_graphs(node))


def renamed(
    node: onnx.NodeProto, names: Mapping[str, str], attributes: Mapping[str, onnx.AttributeProto] | None = None
) -> onnx.NodeProto:
    """Copy a node of a function body, with names and attribute values of the call site.

    In its subgraphs only names of outer values are replaced.
    """
    copy = copy_of(node)
    pending = [copy]
    while pending:
        current = pending.pop()
        current.input[:] = [names.get(name, name) for name in current.input]
        if current is copy:
            current.output[:] = [names.get(name, name) for name in current.output]
        resolved = []
        for attribute in current.attribute:
            if attribute.ref_attr_name and attributes is not None:
                if attribute.ref_attr_name not in attributes:
                    continue
                value = onnx.AttributeProto()
                value.CopyFrom(attributes[attribute.ref_attr_name])
                value.name = attribute.name
                attribute = value
            resolved.append(attribute)
        copied = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in resolved]
        current.ClearField("attribute")
        current.attribute.extend(copied)
        for graph in _graphs(current):
            for value in graph.output:
                value.name = names.get(value.name, value.name)
            pending.extend(graph.node)
    return copy


def copy_of(node: onnx.NodeProto) -> onnx.NodeProto:
    """Copy a node."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def static_shape(declared: onnx.TypeProto | None) -> tuple[int, ...] | None:
    """Return the shape of a declared type; None if it is no tensor, or has a dimension without extent."""
    if declared is None or not declared.tensor_type.HasField("shape"):
        return None
    dims = declared.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None


def agree(ours: onnx.TypeProto.Tensor, theirs: onnx.TypeProto.Tensor) -> bool:
    """Check a static type against one that may have unknown dimensions."""
    if theirs.elem_type and ours.elem_type != theirs.elem_type:
        return False
    if not theirs.HasField("shape"):
        return True
    return len(ours.shape.dim) == len(theirs.shape.dim) and all(
        not wanted.HasField("dim_value") or got.dim_value == wanted.dim_value
        for got, wanted in zip(ours.shape.dim, theirs.shape.dim, strict=True)
    )


def spelled(tensor: onnx.TypeProto.Tensor) -> str:
    """Spell a type: ``float[2, ?]``."""
    extents = ", ".join(str(dim.dim_value) if dim.HasField("dim_value") else "?" for dim in tensor.shape.dim)
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}[{extents}]"
