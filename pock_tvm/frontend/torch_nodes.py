"""Describes nodes of PyTorch's graphs for messages: operator, layer and parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def sources_of(nodes: Sequence[Any]) -> list[Any]:
    """Return nodes and all that they depend on, the nearest first."""
    waiting, seen = list(nodes), set(nodes)
    for each in waiting:
        new = [source for source in each.all_input_nodes if source not in seen]
        seen.update(new)
        waiting += new
    return waiting


def parameter_behind(node: Any, parameters: Mapping[str, str]) -> str:
    """Find the nearest parameter that a node depends on; ``parameters`` maps graph names to PyTorch's names."""
    return next((parameters[each.name] for each in sources_of([node]) if each.name in parameters), "")
