"""Describes nodes of PyTorch's graphs for messages: operator, layer and parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def layer_of(node: Any) -> str:
    """Return the qualified name of the module that a node belongs to; empty for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def where(node: Any) -> str:
    """Describe a node for a message: operator and layer."""
    name = node.target.name() if isinstance(node.target, torch._ops.OpOverload) else str(node.target)
    layer = layer_of(node)
    return f"operator '{name.removesuffix('.default').replace('::', '.')}'" + (
        f" in layer '{layer}'" if layer else f" ('{node.name}')"
    )


def short_name(node: Any) -> str:
    """Return the operator of a node, without library and overload."""
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]


def parameter_behind(node: Any, parameters: Mapping[str, str]) -> str:
    """Find the nearest parameter that a node depends on; ``parameters`` maps graph names to PyTorch's names."""
    seen, waiting = {node}, [node]
    for each in waiting:
        if each.name in parameters:
            return parameters[each.name]
        new = [source for source in each.all_input_nodes if source not in seen]
        seen.update(new)
        waiting += new
    return ""
