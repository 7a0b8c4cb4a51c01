"""Fingerprints of models: contributions hold for the model that they were measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..frontend import Model

GRAPH = "(graph)"
"""Entry of a fingerprint for the graph, beside the entries of weights."""


def fingerprint(model: Model) -> dict[str, Any]:
    """Compute a model's fingerprint: shape and digest of values for each weight, and a digest of the graph."""
    weights = {
        name: {"shape": list(array.shape), "values": hashlib.sha256(array.tobytes()).hexdigest()[:16]}
        for name, array in model.weights.items()
    }
    graph = hashlib.sha256(model.module.script().encode()).hexdigest()[:16]
    return weights | {GRAPH: {"shape": [], "values": graph}}


def first_difference(measured: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """Describe the first difference of two fingerprints; None if they are equal."""
    for name in dict.fromkeys([*measured, *given]):
        if name not in given:
            return f"it had '{name}', which is missing here"
        if name not in measured:
            return f"it had no '{name}'"
        if measured[name]["shape"] != given[name]["shape"]:
            return (
                f"'{name}' had the shape {tuple(measured[name]['shape'])}, and has {tuple(given[name]['shape'])} here"
            )
        if measured[name]["values"] != given[name]["values"]:
            return "its operators were others" if name == GRAPH else f"'{name}' had other values"
    return None
