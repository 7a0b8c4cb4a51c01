"""Checkpoint files: what training has changed, as a safetensors file with a checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from .errors import CheckpointError
from .files import replacing
from .parameters import Parameter

CHECKPOINT = "pock-checkpoint/1"


def write_checkpoint(
    path: str | os.PathLike[str], state: Mapping[str, np.ndarray], steps: int, fingerprint: str
) -> None:
    """Write a checkpoint: named arrays, the number of steps, and which programs it fits."""
    state = {name: np.asarray(array, order="C") for name, array in state.items()}
    metadata = {"format": CHECKPOINT, "steps": str(steps), "program": fingerprint, "checksum": _checksum(state)}
    with replacing(path) as file:
        file.write(safetensors.numpy.save(state, metadata))


def read_checkpoint(
    path: str | os.PathLike[str], parameters: Iterable[Parameter], optimizer: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of a checkpoint and its number of steps.

    Raises
    ------
    CheckpointError
        The file is missing or damaged, or belongs to a program with other parameters or another optimizer.
    """
    try:
        data = Path(path).read_bytes()
        state = safetensors.numpy.load(data)
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint '{path}'") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"'{path}' is no checkpoint, or is damaged: {error}") from error
    if metadata.get("format") != CHECKPOINT:
        raise CheckpointError(f"'{path}' is no checkpoint of format {CHECKPOINT}")
    if metadata.get("checksum") != _checksum(state):
        raise CheckpointError(f"'{path}' is damaged: its checksum is wrong")
    # Programs that were not read from a file once had tuples where a file has lists.
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in _plain(optimizer).items()}
    known = list(parameters)
    if metadata["program"] not in (fingerprint_of(known, optimizer), _fingerprint(known, tuples)):
        raise CheckpointError(f"'{path}' is a checkpoint of another program: its scheme, optimizer or weights differ")
    return state, int(metadata["steps"])


def fingerprint_of(parameters: Iterable[Parameter], optimizer: Mapping[str, Any]) -> str:
    """A hash of everything that a checkpoint depends on: the parameters with their layouts, what of them is trained,
    and the optimizer. Equal for the same program in either file format."""
    return _fingerprint(parameters, _plain(optimizer))


def _plain(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The optimizer's options as a file has them: lists in the place of tuples."""
    return json.loads(json.dumps(optimizer))


def _fingerprint(parameters: Iterable[Parameter], optimizer: Mapping[str, Any]) -> str:
    known = list(parameters)
    weights = {parameter.name: parameter.to_json() for parameter in known if parameter.is_weight}
    states = sorted(parameter.name for parameter in known if parameter.is_state)
    return hashlib.sha256(repr([weights, optimizer, states]).encode()).hexdigest()


def _checksum(state: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name]).tobytes())
    return digest.hexdigest()
