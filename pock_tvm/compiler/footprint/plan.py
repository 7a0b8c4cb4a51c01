"""Memory plan of a bundle: where each operand of the entry points lies, in the caller's memory or among the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ...device.contract import nbytes
from ...device.memory import ALIGNMENT
from ...device.parameters import FROZEN, GRADIENT_SUM, PREPARED
from ...device.program import Program, kernel_calls

HEAD_BYTES = 1024
"""Bytes at the start of the memory for ``struct pock``: counts, messages, threads. The C code checks that it fits."""
STEPS = ("train_step", "accumulate_step", "predict")
"""Entry points that a bundle runs, those of them that a program has."""
TARGET = "target"
"""The loss's target, as the tables call it."""
MEMORY, WEIGHTS = "m", "w"
"""Spaces of operands, as the C code calls their addresses."""


class Place(NamedTuple):
    """Address of an operand: a space and an offset in bytes."""

    space: str
    offset: int

    def __str__(self) -> str:
        return f"at({self.space}, {self.offset})"


class Initial(NamedTuple):
    """Value that training changes: where it is in memory, and what it begins with among the weights."""

    memory: int
    weights: int
    size: int


@dataclass
class Plan:
    """Places of everything that a bundle's entry points read and write."""

    places: dict[str, Place] = field(default_factory=dict)
    """By name in the tables; results as ``<entry>/result.<i>``."""
    weights: bytearray = field(default_factory=bytearray)
    """Frozen and prepared weights, constants, and initial values of what training changes."""
    initial: list[Initial] = field(default_factory=list)
    sums: tuple[int, int] = (0, 0)
    """Offset and size of all gradient sums, which lie side by side."""
    arena: int = 0
    memory_bytes: int = HEAD_BYTES

    def place(self, entry: Mapping[str, Any], name: str, position: int, offset: int) -> Place:
        """The place of an operand of a call list."""
        if position == len(entry["table"]):
            return Place(MEMORY, self.arena + offset)
        start = self.places[key_of(name, entry["table"][position]["name"])]
        return Place(start.space, start.offset + offset)


def called_kernels(program: Program) -> dict[str, int]:
    """The kernels that a bundle's entry points call, in alphabetical order, with the number of their operands."""
    entries = program.manifest["entries"]
    calls = [call for name in STEPS if name in entries for call in kernel_calls(entries[name])]
    return {kernel: len(places) for kernel, places in sorted(calls)}


def key_of(entry: str, name: str) -> str:
    """The name of a tensor in a plan: each entry point has results of its own."""
    return f"{entry}/{name}" if name.startswith("result.") else name


def plan_of(program: Program, prepared: Mapping[str, np.ndarray]) -> Plan:
    """Plan the memory and weights of a bundle.

    ``prepared``: the frozen weights in the layouts that kernels read, by name.
    """
    plan, parameters = Plan(), program.parameters
    entries = {name: program.manifest["entries"][name] for name in STEPS if name in program.manifest["entries"]}
    tensors = {
        key_of(entry, tensor["name"]): (entry, tensor) for entry, each in entries.items() for tensor in each["table"]
    }

    def is_sum(name: str) -> bool:
        return name in parameters and parameters[name].origin == GRADIENT_SUM

    handed = {each["name"] for each in program.manifest["inputs"]} | {TARGET}
    for name, (entry, tensor) in sorted(tensors.items(), key=lambda item: is_sum(item[0])):  # sums side by side
        if name in handed:
            continue
        parameter = parameters.get(name)
        if name.startswith("constant."):
            plan.places[name] = Place(WEIGHTS, _append(plan.weights, program.constant(entry, name)))
        elif parameter is not None and parameter.origin == PREPARED:
            plan.places[name] = Place(WEIGHTS, _append(plan.weights, prepared[name]))
        elif parameter is not None and parameter.is_frozen:
            plan.places[name] = Place(WEIGHTS, _append(plan.weights, parameter.store(program.weights[name])))
        else:
            size = nbytes(tensor)
            plan.places[name] = Place(MEMORY, plan.memory_bytes)
            if parameter is not None and parameter.is_weight:
                stored = _append(plan.weights, parameter.store(program.weights[name]))
                plan.initial.append(Initial(plan.memory_bytes, stored, size))
            if is_sum(name):
                start = plan.sums[0] or plan.memory_bytes
                plan.sums = (start, plan.memory_bytes + size - start)
            plan.memory_bytes = _up(plan.memory_bytes + size)
    plan.arena = plan.memory_bytes
    size = max(entry["arena_bytes"] for entry in entries.values())
    sizes = {name: nbytes(tensor) for name, (_, tensor) in tensors.items() if name in handed}
    offsets = _overlaid(entries, sizes)
    for name, offset in offsets.items():
        plan.places[name] = Place(MEMORY, plan.arena + offset)
        size = max(size, offset + sizes[name])
    plan.memory_bytes += _up(size)
    return plan


def _overlaid(entries: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return offsets in the arena of what a caller hands over, largest first: at each, nothing else lies there before
    its last use. Every call of an entry point copies it anew."""
    offsets: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        taken = [(offset, sizes[other]) for other, offset in offsets.items()]
        for entry in entries.values():
            last = _last_use(entry, name)
            taken += [(start, size) for _, start, size, first, _ in entry["arena_map"] if first <= last]
        offset = 0
        for start, size in sorted(taken):
            if start < offset + sizes[name]:
                offset = max(offset, _up(start + size))
        offsets[name] = offset
    return offsets


def _last_use(entry: Mapping[str, Any], name: str) -> int:
    """Return the last call of an entry point that reads a tensor; -1 if none does."""
    position = next((at for at, tensor in enumerate(entry["table"]) if tensor["name"] == name), None)
    uses = [number for number, call in enumerate(entry["calls"]) if any(at == position for at, _ in call[1])]
    return max(uses, default=-1)


def live_weights(program: Program, plan: Plan) -> list[str]:
    """The weights that training changes, in the program's order: parameters, and running statistics."""
    return [
        name
        for name, each in program.parameters.items()
        if each.is_weight and each.trained != FROZEN and name in plan.places
    ]


def _append(weights: bytearray, array: np.ndarray) -> int:
    """Append an array at the next aligned offset, and return that."""
    weights += bytes(-len(weights) % ALIGNMENT)
    at = len(weights)
    weights += np.ascontiguousarray(array).tobytes()
    return at


def _up(size: int) -> int:
    return size + -size % ALIGNMENT
