"""Matches a training state, parameter by parameter, with the program that is to go on from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from . import optimizers
from .checksums import weight_checksums
from .errors import CheckpointError
from .parameters import GRADIENT_SUM, OPTIMIZER, Parameter
from .parts import moved_part, part_shape, stored_part
from .program import Program
from .state import State, TrainingState

NAMED = 3
"""Arrays that a message names before it counts the rest."""


@dataclass(frozen=True)
class Restored:
    """Outcome of a restore: each entry is an array, named as in ``exp_avg of 'head.weight'``."""

    path: str
    steps: int
    kept: tuple[str, ...]
    added: tuple[str, ...] = ()
    """Arrays and channels of which the checkpoint knew nothing: weights are the program's, states begin at zero."""
    dropped: tuple[str, ...] = ()
    """Arrays and elements that the program has no place for."""
    warnings: tuple[str, ...] = ()
    """Newer files that were not whole, and what else is not as it was."""

    def __str__(self) -> str:
        parts = [f"{len(self.kept)} arrays kept"]
        parts += [f"{name}: {listed(found)}" for name in ("added", "dropped") if (found := getattr(self, name))]
        return f"restored {self.steps} steps from '{self.path}': {'; '.join(parts)}"


@dataclass
class Match:
    """A state as a program holds it."""

    weights: dict[str, np.ndarray] = field(default_factory=dict)
    """Those that are not the program's own, in PyTorch's layout."""
    states: dict[str, np.ndarray] = field(default_factory=dict)
    """Optimizer state and gradient sums, as they are stored; zero where there is none."""
    misfits: set[str] = field(default_factory=set)
    """Weights that the program lacks or has in another shape."""
    updates: int = 0
    pending: int = 0
    kept: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def listed(entries: Sequence[str]) -> str:
    """The first few entries, and how many more there are."""
    more = f" and {len(entries) - NAMED} more" if len(entries) > NAMED else ""
    return ", ".join(entries[:NAMED]) + more


def match(path: str, state: TrainingState, program: Program, *, allow_drop: bool = False) -> Match:
    """Match a state with a program of the same network: of another scheme, optimizer, batch, budget or target.

    Raises
    ------
    CheckpointError
        It was trained with other frozen weights; an array has a type or shape that its records exclude; or something in
        it, other than zeros, would be lost and ``allow_drop`` is not given.
    """
    parameters = program.parameters
    weights = {name: each for name, each in parameters.items() if each.is_weight}
    aliases = program.manifest["aliases"]
    found = Match(updates=state.updates, pending=state.pending)
    _match_weights(path, state, program, weights, found)
    known = {(each.slot, aliases.get(each.of, each.of)): each for each in state.states}
    dropped_sums = state.pending and state.accumulate != program.manifest["options"]["accumulate"]
    if dropped_sums or not state.pending:
        known = {key: each for key, each in known.items() if key[0] != GRADIENT_SUM}
    if dropped_sums:
        found.pending = 0
        found.dropped.append(f"the gradients of {state.pending} steps since the last update")
    old_moments = new_moments = False
    for name, parameter in parameters.items():
        if not parameter.is_state:
            continue
        owner, key = parameters[parameter.of], (parameter.slot or GRADIENT_SUM, parameter.of)
        # Whose weight the program has in another shape has lost its state with it.
        old = known.pop(key, None) if owner.name not in found.misfits else None
        found.states[name], new = _matched_state(path, parameter, owner, old, found)
        if parameter.origin == OPTIMIZER:
            old_moments |= new < math.prod(parameter.shape)
            new_moments |= new > 0
    found.dropped += [_name(each) for each in known.values() if np.any(each.values)]
    _match_updates(program, found, old_moments=old_moments, new_moments=new_moments)
    if found.dropped and not allow_drop:
        raise CheckpointError(
            f"'{path}' holds what this program has no place for, and it would be lost: {listed(found.dropped)}. "
            "Compile a program that trains it too, or go on without: allow_drop=True"
        )
    return found


def _match_weights(
    path: str, state: TrainingState, program: Program, weights: dict[str, Parameter], found: Match
) -> None:
    aliases = program.manifest["aliases"]
    for given, array in state.weights.items():
        name = aliases.get(given, given)
        if name not in weights or array.shape != weights[name].shape:
            found.dropped.append(f"the weight '{given}'")
            found.misfits.add(name)
            continue
        _check_type(path, f"'{given}'", array, weights[name].dtype)
        found.weights[name] = array
        found.kept.append(f"the weight '{name}'")
    current = program.manifest.get("weight_crc32") or weight_checksums(program.weights)
    differing = [f"'{name}'" for name, crc in state.frozen.items() if current.get(aliases.get(name, name)) != crc]
    if differing:
        raise CheckpointError(
            f"'{path}' was trained beside other frozen weights than the program's: {listed(differing)}. Compile "
            "the program from the network that the checkpoint was trained with"
        )
    unknown = weights.keys() - found.weights.keys() - {aliases.get(name, name) for name in state.frozen}
    if state.frozen:  # files of the first format do not say what was frozen
        found.added += [f"the weight '{name}'" for name in weights if name in unknown]


def _matched_state(
    path: str, parameter: Parameter, owner: Parameter, old: State | None, found: Match
) -> tuple[np.ndarray, int]:
    """A state as the program stores it, and how many elements of it begin at zero."""
    size = math.prod(parameter.shape)
    if old is None:
        if parameter.origin == OPTIMIZER:
            found.added.append(f"{parameter.slot} of '{owner.name}'")
        return np.zeros(parameter.shape, parameter.dtype), size
    name = _name(old)
    _check_type(path, name, old.values, parameter.dtype)
    _check_part(path, name, old, owner)
    values, lost, added = moved_part(old.values, old.trained, owner.trained, owner.shape)
    if lost:
        found.dropped.append(f"{lost} of {old.values.size} elements of {name}")
    if added:
        found.added.append(f"{added} of {size} elements of {name}")
    if added < size:
        found.kept.append(name)
    return stored_part(owner, values), added


def _check_type(path: str, name: str, array: np.ndarray, dtype: str) -> None:
    if array.dtype != np.dtype(dtype):
        raise CheckpointError(f"'{path}' has {name} as {array.dtype}, and the program as {dtype}")


def _check_part(path: str, name: str, old: State, owner: Parameter) -> None:
    """Check that a state has the shape of what was trained, and that this was a part of the parameter."""
    trained = old.trained
    if isinstance(trained, dict):
        axis, indices = trained.get("axis"), trained.get("indices")
        valid = (
            type(axis) is int
            and 0 <= axis < len(owner.shape)
            and isinstance(indices, list)
            and all(type(each) is int and 0 <= each < owner.shape[axis] for each in indices)
            and len(set(indices)) == len(indices)
        )
    else:
        valid = trained == "full"
    if not valid or old.values.shape != part_shape(owner.shape, trained):
        raise CheckpointError(f"'{path}' has {name} in the shape {old.values.shape}, which is no part of {owner.shape}")


def _match_updates(program: Program, found: Match, *, old_moments: bool, new_moments: bool) -> None:
    """Count updates for the optimizer's rates, which depend on how old its state is."""
    if new_moments and not old_moments:
        found.updates = 0
    optimizer = optimizers.from_json(program.manifest["optimizer"])
    if new_moments and found.updates and isinstance(optimizer, optimizers.Adam):
        beta1, beta2 = optimizer.betas
        factor = (1 - beta1) / math.sqrt(1 - beta2)
        found.warnings.append(
            f"what this program trains and the one before it did not has moments of zero, and Adam counts "
            f"{found.updates} updates behind them: its first steps are up to {factor:.1f} times as large as usual"
        )


def _name(state: State) -> str:
    return f"{state.slot} of '{state.of}'"
