"""Memory plan of a bundle: where each operand of the entry points lies, in the caller's memory or among the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from relay_passes.analysis.live_ranges import INPUT

from ...device.contract import nbytes
from ...device.memory import ALIGNMENT
from ...device.parameters import FROZEN, GRADIENT_SUM, PREPARED, Parameter
from ...device.program import Program, kernel_calls

HEAD_BYTES = 1024
"""Bytes at the start of the memory for ``struct pock``: counts, messages, threads. The C code checks that it fits."""
STEPS = ("train_step", "accumulate_step", "predict")
"""Entry points that a bundle runs, those of them that a program has."""
TARGET = "target"
"""The loss's target, as the tables call it."""
MEMORY, WEIGHTS = "m", "w"
"""Spaces of operands, as the C code calls their addresses."""


HEXAGON, VECTOR_BYTES = "hexagon-", 128
"""Beginning of the triples of Hexagon DSPs, and bytes of their vectors, at multiples of which all tensors begin."""


T = TypeVar("T")


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
class Memory:
    """Layout of the memory of a bundle: what lives on between calls, then the arena, in which inputs lie as well."""

    offsets: dict[str, int] = field(default_factory=dict)
    """By name in the tables; results as ``<entry>/result.<i>``. Weights that no step changes have none."""
    sums: tuple[int, int] = (0, 0)
    """Offset and size of all gradient sums, which lie side by side."""
    arena: int = HEAD_BYTES
    """Offset of the arena: the bytes of all that lives on."""
    handed: int = 0
    """Bytes of inputs and target. They share the arena: each needs its place until its last use."""
    size: int = 0
    alignment: int = ALIGNMENT
    """Bytes at whose multiples all begins: the memory itself, too."""


@dataclass
class Plan:
    """Places of everything that a bundle's entry points read and write."""

    memory: Memory
    places: dict[str, Place] = field(default_factory=dict)
    """By name in the tables; results as ``<entry>/result.<i>``."""
    weights: bytearray = field(default_factory=bytearray)
    """Frozen and prepared weights, constants, and initial values of what training changes."""
    initial: list[Initial] = field(default_factory=list)

    def place(self, entry: Mapping[str, Any], name: str, position: int, offset: int) -> Place:
        """The place of an operand of a call list."""
        if position == len(entry["table"]):
            return Place(MEMORY, self.memory.arena + offset)
        start = self.places[key_of(name, entry["table"][position]["name"])]
        return Place(start.space, start.offset + offset)


def called_kernels(program: Program) -> dict[str, int]:
    """The kernels that a bundle's entry points call, in alphabetical order, with the number of their operands."""
    calls = [call for entry in bundled(program.manifest["entries"]).values() for call in kernel_calls(entry)]
    return {kernel: len(places) for kernel, places in sorted(calls)}


def key_of(entry: str, name: str) -> str:
    """The name of a tensor in a plan: each entry point has results of its own."""
    return f"{entry}/{name}" if name.startswith("result.") else name


def memory_of(
    entries: Mapping[str, Any],
    parameters: Mapping[str, Parameter],
    inputs: Iterable[str],
    alignment: int = ALIGNMENT,
) -> Memory:
    """Plan the memory of a bundle of these entry points, in their manifest's form, and inputs."""
    memory, handed = Memory(alignment=alignment), {*inputs, TARGET}
    tensors = {name: tensor for name, (_, tensor) in _tensors(entries).items()}
    sums = {name for name, each in parameters.items() if each.origin == GRADIENT_SUM}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0] in sums):  # sums side by side
        if name in handed or _is_constant(name, parameters):
            continue
        memory.offsets[name], size = memory.arena, nbytes(tensor)
        if name in sums:
            start = memory.sums[0] or memory.arena
            memory.sums = (start, memory.arena + size - start)
        memory.arena = _up(memory.arena + size, alignment)
    sizes = {name: nbytes(tensor) for name, tensor in tensors.items() if name in handed}
    inside = _held(entries) or _overlaid(entries, sizes, alignment)
    memory.offsets |= {name: memory.arena + offset for name, offset in inside.items()}
    ends = [offset + sizes[name] for name, offset in inside.items()]
    memory.handed = sum(_up(size, alignment) for size in sizes.values())
    memory.size = memory.arena + _up(max(*(entry["arena_bytes"] for entry in entries.values()), *ends), alignment)
    return memory


def _held(entries: Mapping[str, Any]) -> dict[str, int]:
    """Return the offsets in the arena of what a caller hands over, where the program's own plan has places for that."""
    regions = [region for entry in entries.values() for region in entry["arena_map"]]
    return {name.removeprefix(INPUT): offset for name, offset, *_ in regions if name.startswith(INPUT)}


def plan_of(program: Program, prepared: Mapping[str, np.ndarray]) -> Plan:
    """Plan the memory and weights of a bundle.

    ``prepared``: the frozen weights in the layouts that kernels read, by name.
    """
    parameters, entries = program.parameters, bundled(program.manifest["entries"])
    inputs, triple = [each["name"] for each in program.manifest["inputs"]], program.manifest["target"]["triple"]
    alignment = VECTOR_BYTES if triple.startswith(HEXAGON) else ALIGNMENT
    plan = Plan(memory_of(entries, parameters, inputs, alignment))
    plan.places = {name: Place(MEMORY, offset) for name, offset in plan.memory.offsets.items()}
    for name, (entry, tensor) in _tensors(entries).items():
        parameter = parameters.get(name)
        if parameter is None and not _is_constant(name, parameters):
            continue
        if parameter is None:
            plan.places[name] = Place(WEIGHTS, _append(plan, program.constant(entry, name)))
        elif parameter.origin == PREPARED:
            plan.places[name] = Place(WEIGHTS, _append(plan, prepared[name]))
        elif parameter.is_weight:
            stored = _append(plan, parameter.store(program.weights[name]))
            if parameter.is_frozen:
                plan.places[name] = Place(WEIGHTS, stored)
            else:
                plan.initial.append(Initial(plan.memory.offsets[name], stored, nbytes(tensor)))
    if alignment == VECTOR_BYTES:  # the last vector of weights is read to its end
        plan.weights += bytes(VECTOR_BYTES)
    return plan


def bundled(entries: Mapping[str, T]) -> dict[str, T]:
    """Those of a program's entry points that a bundle runs."""
    return {name: entries[name] for name in STEPS if name in entries}


def _tensors(entries: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """The entry point and the record of each tensor in the tables."""
    return {key_of(entry, each["name"]): (entry, each) for entry, calls in entries.items() for each in calls["table"]}


def _is_constant(name: str, parameters: Mapping[str, Parameter]) -> bool:
    """Whether no step changes a tensor: it lies among the weights."""
    parameter = parameters.get(name)
    if parameter is None:
        return name.startswith("constant.")
    return parameter.origin == PREPARED or parameter.is_frozen


def _overlaid(entries: Mapping[str, Any], sizes: Mapping[str, int], alignment: int) -> dict[str, int]:
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
                offset = max(offset, _up(start + size, alignment))
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


def _append(plan: Plan, array: np.ndarray) -> int:
    """Append an array to the weights at the next aligned offset, and return that."""
    at = _up(len(plan.weights), plan.memory.alignment)
    plan.weights += bytes(at - len(plan.weights))
    plan.weights += np.ascontiguousarray(array).tobytes()
    return at


def _up(size: int, alignment: int) -> int:
    return size + -size % alignment
