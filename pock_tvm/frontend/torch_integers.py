"""Finds the weights that a model keeps in small integers: they stay integers, and a step computes their floats."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.export import ExportedProgram

from .torch_operators import has_converter

SMALL = (torch.int8, torch.uint8, torch.int16)
"""Types of integers that take less memory than the floats that they stand for."""
LEAST_BYTES = 4096
"""Size from which integers are kept. The floats of smaller ones take less than their computation in every step."""
FLOAT_BYTES = 4


def small_integers(exported: ExportedProgram, constant: Collection[Any], targets: dict[str, str]) -> set[Any]:
    """Return the nodes of quantised weights: integers that would fold to more bytes of floats.

    ``constant`` are the placeholders of all constants; ``targets`` names what is behind each, by the node's name.
    """
    folded = set(constant)
    for node in exported.graph.nodes:
        if node.op == "call_function" and _is_tensor(node) and node.all_input_nodes:
            folded |= {node} if folded.issuperset(node.all_input_nodes) else set()
    found = set()
    for node in constant:
        tensor = exported.state_dict.get(targets[node.name])
        if tensor is not None and tensor.dtype in SMALL and tensor.nbytes >= LEAST_BYTES:
            found |= {node} if _folds_to_more(node, folded, tensor.nbytes) else set()
    return found


def _folds_to_more(node: Any, folded: Collection[Any], nbytes: int) -> bool:
    """Whether what is made of a constant alone is read as floats of more than ``nbytes`` in all."""
    made, size = [node], 0
    for each in made:
        made += [user for user in each.users if user in folded and user not in made]
    for each in made:
        readers = [user for user in each.users if user not in folded and (user.op == "output" or _is_tensor(user))]
        numbers = each.meta["val"]
        if not all(_is_tensor(user) and user.meta["val"].is_floating_point() for user in readers):
            return False
        if readers and not (numbers.is_floating_point() or numbers.dtype in SMALL):
            return False
        size += FLOAT_BYTES * numbers.numel() * bool(readers)
    return size > nbytes and all(has_converter(each.target) for each in made[1:])


def _is_tensor(node: Any) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
