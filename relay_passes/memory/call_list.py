"""Call list of an entry point: its kernel calls, in order, and the addresses of their operands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import tvm

from ..errors import PassError

ATTRIBUTE = "call_list"
NONE: Mapping[str, tvm.runtime.Tensor] = MappingProxyType({})
COPY, CHECK = "copy", "check"
"""Mark the record of a copy or a check, in place of a kernel's name. Kernel names end in a hash, so they never
clash."""

INPUT, LOSS, GRADIENT, STATISTIC, FACTOR = "input", "loss", "gradient", "statistic", "factor"
"""Kinds of tensors that a :class:`Check` reads. A factor is one of a gradient that is never in memory."""
WRITTEN = NOTHING, SUMS, STATE = "nothing", "sums", "state"
"""In-place writes before a :class:`Check`, in ascending order: nothing; gradient sums alone; weights,
statistics or states of the optimizer."""


class Tensor(NamedTuple):
    """Tensor at an address that an entry point takes."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Place(NamedTuple):
    """Address: an index into the table and an offset in bytes. The arena's index follows the table's last."""

    position: int
    offset: int


@dataclass(frozen=True)
class KernelCall:
    """Call of a kernel, with the places of its operands: inputs, outputs, then scratch if it needs any."""

    kernel: str
    operands: tuple[Place, ...]

    def record(self) -> list[Any]:
        """Return ``[kernel, [[position, offset], …]]``."""
        return [self.kernel, [list(place) for place in self.operands]]


@dataclass(frozen=True)
class Copy:
    """Copy of ``size`` bytes between two places."""

    to: Place
    source: Place
    size: int

    def record(self) -> list[Any]:
        """Return ``["copy", [to, source], bytes]``."""
        return [COPY, [list(self.to), list(self.source)], self.size]


@dataclass(frozen=True)
class Check:
    """Check that the ``count`` numbers at a place are finite, or that no sum of products of two factors can overflow
    (:func:`schedules.kernels.finite.all_factors`). If not, the entry point stops there."""

    place: Place
    count: int
    dtype: str
    kind: str
    """Kind of the tensor: ``INPUT``, ``LOSS``, ``GRADIENT``, ``STATISTIC`` or ``FACTOR``."""
    name: str
    """Name of the input, or of the parameter that the gradient or statistic belongs to."""
    written: str
    """In-place writes of earlier calls: ``NOTHING``, ``SUMS`` or ``STATE``."""
    other: tuple[Place, int] | None = None
    """Of a ``FACTOR``: place and count of the other one, of the same dtype."""

    def record(self) -> list[Any]:
        """Return ``["check", [place], count, dtype, kind, name, written]``; of two factors ``["check", [place, other
        place], count, dtype, kind, name, written, other count]``."""
        places, counts = ([list(self.other[0])], [self.other[1]]) if self.other else ([], [])
        what = [self.dtype, self.kind, self.name, self.written]
        return [CHECK, [list(self.place), *places], self.count, *what, *counts]


Call: TypeAlias = KernelCall | Copy | Check


class Region(NamedTuple):
    """Temporary in the arena: offset and size in bytes, and its live range as first and last call."""

    name: str
    offset: int
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Workspace:
    """Memory that an entry point needs besides its table: one arena."""

    arena_bytes: int
    lower_bound: int
    """Peak of bytes in use at one call. No arena can be smaller."""
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class CallList:
    """Entry point: its address table, its calls in order, its workspace.

    The table names the parameters that are read, the constants (``constant.<digest>``), each once, and the results
    (``result.<i>``). Executors, printers and profilers all read this list.
    """

    table: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    workspace: Workspace
    constants: Mapping[str, tvm.runtime.Tensor] = field(default_factory=dict)

    @property
    def arena(self) -> int:
        """Position of the arena's address."""
        return len(self.table)

    def record(self) -> dict[str, Any]:
        """Return the list as plain values for a manifest, without the constants."""
        return {
            "table": [{"name": name, "shape": list(shape), "dtype": dtype} for name, shape, dtype in self.table],
            "arena_bytes": self.workspace.arena_bytes,
            "arena_lower_bound": self.workspace.lower_bound,
            "calls": [call.record() for call in self.calls],
            "arena_map": [list(region) for region in self.workspace.regions],
        }


def attached(func: tvm.ir.BaseFunc, calls: CallList) -> tvm.ir.BaseFunc:
    """Attach a call list to a function, as an attribute."""
    return func.with_attr(ATTRIBUTE, {**calls.record(), "constants": dict(calls.constants)})


def call_list_of(func: tvm.ir.BaseFunc) -> CallList:
    """Return the call list of a function.

    Raises
    ------
    PassError
        The function has none.
    """
    if func.attrs is None or ATTRIBUTE not in func.attrs:
        raise PassError("a function has no call list: run relay_passes.ListCalls first")
    record = func.attrs[ATTRIBUTE]
    return read_call_list(record, {str(name): value for name, value in record["constants"].items()})


def read_call_list(record: Mapping[str, Any], constants: Mapping[str, tvm.runtime.Tensor] = NONE) -> CallList:
    """Return the call list of which a record was made (:meth:`CallList.record`)."""
    regions = (Region(str(name), *map(int, numbers)) for name, *numbers in record["arena_map"])
    return CallList(
        tuple(Tensor(str(row["name"]), tuple(map(int, row["shape"])), str(row["dtype"])) for row in record["table"]),
        tuple(_call(*call) for call in record["calls"]),
        Workspace(int(record["arena_bytes"]), int(record["arena_lower_bound"]), tuple(regions)),
        constants,
    )


def _call(name: Any, places: Iterable[Sequence[Any]], *rest: Any) -> Call:
    """Read one record of a list."""
    at = [Place(int(position), int(offset)) for position, offset in places]
    if name == COPY:
        to, source = at
        return Copy(to, source, int(rest[0]))
    if name == CHECK:
        count, dtype, kind, of, written, *more = rest
        other = (at[1], int(more[0])) if more else None
        return Check(at[0], int(count), str(dtype), str(kind), str(of), str(written), other)
    return KernelCall(str(name), tuple(at))
