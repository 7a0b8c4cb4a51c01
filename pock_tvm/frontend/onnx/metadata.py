"""Reads what PyTorch's exporters write beside the graph of an ONNX file: its FX nodes, modules and signature."""

from __future__ import annotations

import ast
import re

import onnx


def fx_note(node: onnx.NodeProto) -> str:
    """Return the FX node that a node was made of, as text (``dynamo=True``); empty if there is none."""
    return _metadata(node).get("pkg.torch.onnx.fx_node", "")


def fx_values(node: onnx.NodeProto) -> list[str]:
    """Return the names in a node's FX node: its result, then its operands."""
    return re.findall(r"%(\w+)", fx_note(node))


def operator_of(name: str) -> str:
    """Return the operator of an FX value: ``relu`` of ``relu_1``."""
    return re.sub(r"_\d+$", "", name)


def signature_of(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Read the FX signature from metadata (``dynamo=True``): name and kind (parameter, buffer) of each input."""
    notes = _metadata(model.graph) | _metadata(model)
    text = notes.get("pkg.torch.export.ExportedProgram.graph_signature", "")
    found = re.findall(r"^(\w+): (PARAMETER|BUFFER) target='([^']*)'", text, re.MULTILINE)
    return {placeholder: (target, kind) for placeholder, kind, target in found}


def sources_of(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Map initializers to the values that metadata says were folded into them."""
    sources = {}
    for value in [*model.graph.value_info, *model.graph.initializer]:
        note = _metadata(value).get("pkg.onnxscript.optimizer.folded_from")
        names = _literal(note) if note else []
        if names:
            sources[value.name] = [str(name) for name in names]
    return sources


def module_of(node: onnx.NodeProto) -> str:
    """Return the qualified name of a node's module, from metadata or from the node's name."""
    scopes = _metadata(node).get("pkg.torch.onnx.name_scopes")
    if scopes is not None:
        path = [scope for scope in _literal(scopes) if scope]
        return str(path[-2]) if len(path) > 1 else ""
    parts = node.name.strip("/").split("/")[:-1] if node.name.startswith("/") else []
    return ".".join(parts)


def _metadata(proto: object) -> dict[str, str]:
    return {entry.key: entry.value for entry in getattr(proto, "metadata_props", ())}


def _literal(text: str) -> list[object]:
    """Parse a list that an exporter wrote as Python; empty for anything else."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return value if isinstance(value, list) else []
