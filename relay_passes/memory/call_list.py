"""An entry point of a program as a value: what is called on which addresses, in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tvm

from ..errors import PassError

ATTRIBUTE = "call_list"
COPY = "copy"
"""Stands for a kernel's name in the record of a copy; a kernel's ends in a hash."""


class Tensor(NamedTuple):
    """What lies behind an address that an entry point takes."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Place(NamedTuple):
    """An address: a position in the table, and an offset in bytes. The arena's position is one behind the table."""

    position: int
    offset: int


@dataclass(frozen=True)
class KernelCall:
    """A kernel, and where its operands lie, inputs first."""

    kernel: str
    operands: tuple[Place, ...]

    def record(self) -> list[Any]:
        """``[kernel, [[position, offset], …]]``."""
        return [self.kernel, [list(place) for place in self.operands]]


@dataclass(frozen=True)
class Copy:
    """So many bytes from one place to another."""

    to: Place
    source: Place
    size: int

    def record(self) -> list[Any]:
        """``["copy", [to, source], bytes]``."""
        return [COPY, [list(self.to), list(self.source)], self.size]


class Region(NamedTuple):
    """A temporary in the arena: offset and size in bytes, the first and the last call at which it is in use."""

    name: str
    offset: int
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Workspace:
    """The memory that an entry point needs beside what its table names: one arena."""

    arena_bytes: int
    lower_bound: int
    """The most bytes in use at one call: no arena can be smaller."""
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class CallList:
    """An entry point: its table of addresses, its calls in order, its workspace.

    The table names parameters that are read, constants (``constant.<i>``, in the order of ``constants``) and results
    (``result.<i>``). Whatever executes, prints or times an entry point reads this list.
    """

    table: tuple[Tensor, ...]
    calls: tuple[KernelCall | Copy, ...]
    workspace: Workspace
    constants: tuple[tvm.runtime.Tensor, ...] = ()

    @property
    def arena(self) -> int:
        """The position of the arena's address."""
        return len(self.table)

    def record(self) -> dict[str, Any]:
        """The list as a manifest has it: plain values, without the constants."""
        return {
            "table": [{"name": name, "shape": list(shape), "dtype": dtype} for name, shape, dtype in self.table],
            "arena_bytes": self.workspace.arena_bytes,
            "arena_lower_bound": self.workspace.lower_bound,
            "calls": [call.record() for call in self.calls],
            "arena_map": [list(region) for region in self.workspace.regions],
        }


def attached(func: tvm.ir.BaseFunc, calls: CallList) -> tvm.ir.BaseFunc:
    """The function with its call list: in a module it travels as an attribute."""
    return func.with_attr(ATTRIBUTE, {**calls.record(), "constants": list(calls.constants)})


def call_list_of(func: tvm.ir.BaseFunc) -> CallList:
    """The call list of a function.

    Raises
    ------
    PassError
        It has none.
    """
    if func.attrs is None or ATTRIBUTE not in func.attrs:
        raise PassError("a function has no call list: run relay_passes.ListCalls first")
    record = func.attrs[ATTRIBUTE]
    regions = (Region(str(name), *map(int, numbers)) for name, *numbers in record["arena_map"])
    return CallList(
        tuple(Tensor(str(row["name"]), tuple(map(int, row["shape"])), str(row["dtype"])) for row in record["table"]),
        tuple(_call(*call) for call in record["calls"]),
        Workspace(int(record["arena_bytes"]), int(record["arena_lower_bound"]), tuple(regions)),
        tuple(record["constants"]),
    )


def _call(kernel: Any, places: Iterable[Sequence[Any]], *size: Any) -> KernelCall | Copy:
    at = [Place(int(position), int(offset)) for position, offset in places]
    if not size:
        return KernelCall(str(kernel), tuple(at))
    to, source = at
    return Copy(to, source, int(size[0]))
