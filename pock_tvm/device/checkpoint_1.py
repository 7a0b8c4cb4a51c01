"""Reads checkpoints of format ``pock-checkpoint/1``, which fit the program alone that wrote them.

They have optimizer state in the program's layout, and a fingerprint of the program.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .errors import CheckpointError, DamagedCheckpointError
from .parameters import Parameter
from .parts import states_of
from .program import Program
from .state import TrainingState

CHECKPOINT = "pock-checkpoint/1"


def upgraded(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], program: Program
) -> TrainingState:
    """The state that a file of format 1 holds.

    Raises
    ------
    DamagedCheckpointError
        Its checksum is wrong.
    CheckpointError
        It belongs to a program with other parameters, another scheme or another optimizer.
    """
    if metadata["checksum"] != _checksum(tensors):
        raise DamagedCheckpointError(f"'{path}' is damaged: its checksum is wrong")
    parameters, optimizer = program.parameters, json.loads(json.dumps(program.manifest["optimizer"]))
    # Programs that were not read from a file once had tuples where a file has lists.
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in optimizer.items()}
    if metadata["program"] not in [_fingerprint(parameters.values(), each) for each in (optimizer, tuples)]:
        raise CheckpointError(
            f"'{path}' is a checkpoint of another program: its scheme, optimizer or weights differ. It is of an older "
            "format, which fits the program alone that wrote it: restore it there, and save it again"
        )
    steps, accumulate = int(metadata["steps"]), int(program.manifest["options"]["accumulate"])
    arrays = {name: tensors[f"state.{name}"] for name, each in parameters.items() if each.is_state}
    weights = {name: tensors[f"weight.{name}"] for name in parameters if f"weight.{name}" in tensors}
    counts = {"updates": steps // accumulate, "pending": steps % accumulate, "accumulate": accumulate}
    return TrainingState(weights, states_of(parameters, arrays), {}, optimizer, steps, notes={}, **counts)


def _fingerprint(parameters: Iterable[Parameter], optimizer: Mapping[str, Any]) -> str:
    """A hash of what format 1 depends on: the weights with their layouts and trained parts, the names of the states,
    and the optimizer."""
    known = list(parameters)
    weights = {each.name: _record(each) for each in known if each.is_weight}
    states = sorted(each.name for each in known if each.is_state)
    return hashlib.sha256(repr([weights, optimizer, states]).encode()).hexdigest()


def _record(weight: Parameter) -> dict[str, Any]:
    """The record of a weight as manifests had it when the format was written."""
    record: dict[str, Any] = {"shape": list(weight.shape), "dtype": weight.dtype, "trained": weight.trained}
    if weight.layout is not None:
        record["stored"] = {"shape": list(weight.layout.shape), "axes": list(weight.layout.axes)}
    return record


def _checksum(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
