"""Form of a bundle's states: the header of their safetensors file, with zeros for all that differs between states.

It is :func:`pock_tvm.device.checkpoint.contents` of an empty state, so that a state goes from Python to a device and
back.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np

from ...device import optimizers
from ...device.checkpoint import HEADER_CRC, LENGTH_BYTES, NO_CRC, contents
from ...device.checksums import weight_checksums
from ...device.memory import DTYPES
from ...device.parameters import GRADIENT_SUM, Layout, Parameter
from ...device.parts import part_shape, reshaped
from ...device.program import Program
from ...device.random import RANDOM
from ...device.state import State, TrainingState
from .plan import Plan, live_weights

COUNTS = ("steps", "updates", "pending")
"""Numbers of every state; where steps draw numbers, ``seed`` is one more."""
COUNT = "0" * 20
"""A count in the header: 64 bits in decimal, with zeros in front."""
TYPES = {numpy: name for name, numpy in DTYPES.items()}


@dataclass(frozen=True)
class StateTensor:
    """A tensor of a state: positions in the header, and its layout in memory and in the file."""

    key: str
    name: int
    """Position of its name in the header."""
    name_bytes: int
    form_bytes: int
    """Bytes of its record up to the offsets."""
    sum: int
    """Position of its checksum in the header."""
    place: int
    """Offset in memory."""
    item_bytes: int
    run: int
    """Items that lie side by side in memory as in the file."""
    shape: tuple[int, ...]
    """Of runs, in the file."""
    strides: tuple[int, ...]
    """Distances of neighbours along each axis of ``shape`` in memory, in items."""

    @property
    def items(self) -> int:
        """Number of its items."""
        return self.run * math.prod(self.shape)


@dataclass(frozen=True)
class StateField:
    """A member of a state's metadata."""

    key: int
    """Position of its key in the header."""
    key_bytes: int
    value_bytes: int
    """0 if states differ in it."""


@dataclass(frozen=True)
class StateForm:
    """Header of all states of a program, and their tensors in the order of the file."""

    header: bytes
    """With its length in front."""
    fields: tuple[StateField, ...]
    """Metadata without checksums; the counts come last."""
    counts: tuple[int, ...]
    """Positions of :data:`COUNTS`, and of the seed."""
    sum: int
    """Position of the header's own checksum."""
    tensors: tuple[StateTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of a state."""
        return len(self.header) + sum(each.items * each.item_bytes for each in self.tensors)


def state_form(program: Program, plan: Plan) -> StateForm:
    """Make the form of the states of a program's bundle."""
    parameters = program.parameters
    live = live_weights(program, plan)
    stored = {f"weight.{name}": (parameters[name], parameters[name]) for name in live}
    states = []
    for each in parameters.values():
        if each.is_state:
            owner, slot = parameters[each.of], each.slot or GRADIENT_SUM
            zeros = np.zeros(part_shape(owner.shape, owner.trained), each.dtype)
            states.append(State(slot, each.of, owner.trained, zeros))
            stored[f"state.{slot}.{each.of}"] = (each, owner)
    weights = {name: np.zeros(parameters[name].shape, parameters[name].dtype) for name in live}
    checksums = program.manifest.get("weight_crc32") or weight_checksums(program.weights)
    frozen = {name: crc for name, crc in checksums.items() if name not in weights}
    optimizer = optimizers.to_json(optimizers.from_json(program.manifest["optimizer"]))
    accumulate = int(program.manifest["options"]["accumulate"])
    state = TrainingState(weights, tuple(states), frozen, optimizer, 0, 0, 0, accumulate)
    tensors, metadata = contents(state)
    # As safetensors orders them: larger elements first, so that each is aligned; then by name.
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    # What differs between states comes last, in the order in which the C code fills it in.
    numbers = (*COUNTS, *(["seed"] if program.tensor(RANDOM) is not None else []))
    own = {"notes": metadata["notes"]} | dict.fromkeys(numbers, COUNT)
    own |= dict.fromkeys([HEADER_CRC, *(f"crc32.{name}" for name in order)], NO_CRC)
    fixed = {name: value for name, value in metadata.items() if name not in own}
    header = _header({name: tensors[name] for name in order}, fixed | own)
    records = header.index(b"}", _value(header, f"crc32.{order[-1]}", NO_CRC))
    found = []
    for name in order:
        array, (parameter, owner) = tensors[name], stored[name]
        key = _text(name)[1:-1]
        at = header.index(_text(name) + b":{", records) + 1
        form = header.index(b'"data_offsets":[', at) + len(b'"data_offsets":[') - (at + len(key) + 2)
        run, axes = _axes(parameter, owner, array.shape)
        found.append(
            StateTensor(
                name,
                at,
                len(key),
                form,
                _value(header, f"crc32.{name}", NO_CRC),
                plan.places[parameter.name].offset,
                array.itemsize,
                run,
                tuple(extent for extent, _ in axes),
                tuple(stride for _, stride in axes),
            )
        )
    fields = [
        StateField(header.index(_member(name, value)) + 1, len(name), len(_text(value)) if name in fixed else 0)
        for name, value in (fixed | {name: own[name] for name in ("notes", *numbers)}).items()
    ]
    counts = tuple(_value(header, name, COUNT) for name in numbers)
    return StateForm(
        header,
        tuple(fields),
        counts,
        _value(header, HEADER_CRC, NO_CRC),
        tuple(found),
    )


def _header(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """The header of a safetensors file, its length in front."""
    content: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        content[name] = {"dtype": TYPES[str(array.dtype)], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _text(value: str) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _member(name: str, value: str) -> bytes:
    return _text(name) + b":" + _text(value)


def _value(header: bytes, name: str, value: str) -> int:
    """Position in the header of a value of the metadata. Quotes within names are escaped: no other text is like it."""
    return header.index(_member(name, value)) + len(_text(name)) + len(b':"')


def _axes(parameter: Parameter, owner: Parameter, shape: tuple[int, ...]) -> tuple[int, list[tuple[int, int]]]:
    """Items of a tensor that lie side by side in memory as in the file, where its shape is ``shape``; and the extents
    of the axes around them, in the order of the file, with their strides in memory."""
    if parameter.is_weight:
        layout = parameter.layout or Layout(shape, tuple(range(len(shape))))
        inner = layout.shape
    else:
        layout = owner.layout or Layout(shape, tuple(range(len(shape))))
        inner = reshaped(owner, layout) if owner.layout else shape
    stored = [inner[axis] for axis in layout.axes]
    strides = {axis: math.prod(stored[at + 1 :]) for at, axis in enumerate(layout.axes)}
    merged: list[tuple[int, int]] = []
    for axis, extent in enumerate(inner):
        if extent == 1:
            continue
        if merged and merged[-1][1] == extent * strides[axis]:
            merged[-1] = (merged[-1][0] * extent, strides[axis])
        else:
            merged.append((extent, strides[axis]))
    run = merged.pop()[0] if merged and merged[-1][1] == 1 else 1
    return run, merged or [(1, 1)]
