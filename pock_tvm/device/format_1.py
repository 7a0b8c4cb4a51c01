"""Reads the manifests of program files of format ``pock-program/1``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .parameters import FROZEN, GRADIENT_SUM, OPTIMIZER, PREPARED

FORMAT_1 = "pock-program/1"


def upgraded(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as format 2 has it.

    Format 1 has records of the model's parameters alone; all others are told by their names: ``<slot>.<parameter>``,
    ``gradient_sum.<parameter>``, ``prepared.<number>``.
    """
    upgraded = dict(manifest)
    weights = upgraded.pop("weights")
    parameters: dict[str, Any] = dict(weights)
    for name, entry in upgraded["entries"].items():
        for tensor in entry["table"] if name != "prepare" else ():
            slot, _, of = tensor["name"].partition(".")
            record = {"shape": tensor["shape"], "dtype": tensor["dtype"], "trained": FROZEN, "of": "", "slot": ""}
            if tensor["name"] in weights:
                continue
            if slot == "prepared":
                parameters[tensor["name"]] = record | {"origin": PREPARED}
            elif of in weights:
                origin = GRADIENT_SUM if slot == "gradient_sum" else OPTIMIZER
                parameters[tensor["name"]] = record | {
                    "origin": origin,
                    "of": of,
                    "slot": slot if origin == OPTIMIZER else "",
                }
    limits = upgraded["index_limits"]  # the oldest files have the rows of a table alone
    upgraded["index_limits"] = {name: [0, found] if isinstance(found, int) else found for name, found in limits.items()}
    return upgraded | {"format": "pock-program/2", "parameters": parameters}
