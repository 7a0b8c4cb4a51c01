"""Entry points of a program for a GPU: lists of launches, bound to memory once and submitted as a whole.

The library is a zip file that ``pock_tvm.compiler.launches`` packs.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..guards import CHECK
from ..library import CALL_KERNEL, CheckFailed, Library, Outcome
from ..memory import Memory
from .backend import Backend, Command, CopyBytes, Launch, Region
from .memory import DeviceArray, DeviceMemory

COPY = "copy"
FLAG = -1
"""Operand of a launch that reads whether a check has failed (``schedules.gpu.lower``)."""
HEAD = "library.json"
"""File of the library with everything but texts."""
FINITE = "pock_all_finite_"
"""Kernels of checks, by the dtype that follows."""


@dataclass
class Table:
    """Addresses that an entry point is called with, and its commands once they are recorded."""

    addresses: list[int]
    recorded: Any = None
    held: tuple[Any, ...] = ()
    """Arrays that the commands read besides."""


class LaunchLibrary(Library):
    """The entry points of a program on a GPU.

    ``entries`` are the manifest's.
    """

    queues = True

    def __init__(self, library: bytes, entries: Mapping[str, Any], backend: Backend, memory: DeviceMemory) -> None:
        self._entries, self._backend, self._memory = entries, backend, memory
        with zipfile.ZipFile(io.BytesIO(library)) as archive:
            self._head = json.loads(archive.read(HEAD))
            self._kernels = self._head["kernels"]
            for kernel in self._kernels:
                backend.load(kernel, archive.read(kernel))
        self._found = memory.allocate((1,), "int32")
        """0, or the position of the first check that failed in its call list, counted from 1."""
        self._order = sorted(name for name in self._kernels if not name.startswith(FINITE))

    def table(self, addresses: Sequence[int]) -> Table:
        """Addresses as an entry point takes them; behind them a number, if its call list holds checks."""
        return Table(list(addresses))

    def numbers(self, table: Table) -> list[int]:
        """The numbers in a vector that :meth:`table` made."""
        return table.addresses

    def contract(self) -> list[int]:
        """The digest of the layouts and sizes that it was built for."""
        return self._head["contract"]

    def run(self, entry: str, table: Table) -> None:
        """Submit an entry point.

        Raises
        ------
        CheckFailed
            It found a number that is not finite, and wrote nothing in place from there on.
        """
        self._backend.submit(self._recorded(entry, table))
        self._look_at(self._found)

    @property
    def clock(self) -> str:  # type: ignore[override]  # a back end's
        """Clock that times entry points, for reports."""
        return self._backend.clock

    def seconds(self, entry: str, table: Table) -> float:
        return self._backend.seconds(self._recorded(entry, table))

    def start(self, entry: str, table: Table, result: DeviceArray, memory: Memory) -> Outcome:
        """Submit an entry point, and copies of its result and of what its checks found.

        A failed check lets this and all entry points behind it write nothing in place, until its outcome is asked for.
        """
        self._backend.submit(self._recorded(entry, table))
        kept = memory.allocate(result.shape, result.dtype)
        found = memory.allocate((1,), "int32")
        regions = [(kept, result), (found, self._found)]
        copies: list[Command] = [
            CopyBytes(Region(to.buffer, 0, to.nbytes), Region(source.buffer, 0, to.nbytes)) for to, source in regions
        ]
        self._backend.submit(self._backend.record(copies))

        def outcome() -> np.ndarray:
            self._look_at(found)
            return memory.read(kept)

        return outcome

    def _recorded(self, entry: str, table: Table) -> Any:
        if table.recorded is None:
            commands = self._one_call(table) if entry == CALL_KERNEL else self._all_calls(entry, table)
            table.recorded = self._backend.record(commands)
        return table.recorded

    def _look_at(self, found: DeviceArray) -> None:
        """Raise an error if a check has failed, and let what follows write again."""
        (position,) = self._memory.read(found).tolist()
        if position:
            self._memory.write(self._found, 0)
            raise CheckFailed(position - 1)

    def _one_call(self, table: Table) -> list[Command]:
        number, *addresses = table.addresses
        return self._launches(self._order[number], addresses)

    def _all_calls(self, entry: str, table: Table) -> list[Command]:
        calls = self._entries[entry]["calls"]
        stride = max(self._backend.alignment, 8)
        marks = self._memory.allocate((len(calls), stride // 4), "int32")
        table.held = (marks,)
        rows = np.zeros(marks.shape, "int32")
        commands: list[Command] = []
        for number, (kernel, places, *rest) in enumerate(calls):
            addresses = [table.addresses[position] + offset for position, offset in places]
            if kernel == COPY:
                to, source = (self._memory.region(address, rest[0]) for address in addresses)
                commands.append(CopyBytes(to, source))
            elif kernel == CHECK:
                count, dtype = rest[:2]
                rows[number, :2] = count, number + 1
                checked = [*addresses, marks.start + number * stride, self._found.start]
                commands += self._launches(FINITE + dtype, checked, count * np.dtype(dtype).itemsize)
            else:
                commands += self._launches(kernel, addresses)
        self._memory.write(marks, rows)
        return commands

    def _launches(self, kernel: str, addresses: Sequence[int], size: int = 0) -> list[Command]:
        """The launches of one kernel. ``size``: bytes of an operand of any size."""
        record = self._kernels[kernel]
        before: list[Command] = []
        after: list[Command] = []

        @functools.cache  # what is updated in place is bound twice, and has to be one region
        def region(operand: int, offset: int) -> Region:
            if operand == FLAG:
                return self._memory.region(self._found.start, self._found.nbytes)
            found = self._memory.region(addresses[operand] + offset, (record["sizes"][operand] or size) - offset)
            if found.offset % self._backend.alignment == 0:
                return found
            # The device cannot bind it where it lies.
            apart = Region(self._backend.allocate(found.size), 0, found.size)
            before.append(CopyBytes(apart, found))
            after.append(CopyBytes(found, apart))
            return apart

        launches: list[Command] = [
            Launch(kernel, symbol, tuple(grid), tuple(block), tuple(region(*operand) for operand in operands))
            for symbol, grid, block, operands in record["launches"]
        ]
        return [*before, *launches, *after]
