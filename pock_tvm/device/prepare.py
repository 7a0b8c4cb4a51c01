"""Brings frozen weights into the layouts that kernels read, one array at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .memory import Memory


@dataclass
class Preparation:
    """A run of the entry point ``prepare``, call by call.

    As one call it would hold every frozen weight and all temporaries at once. Here a weight exists while a kernel reads
    it, and a temporary from its first to its last use.
    """

    entry: Mapping[str, Any]
    source: Callable[[str], Any]
    """Makes an array in the memory of a weight, as the model has it, or of a constant, by its name in the table."""
    results: Sequence[Any]
    """Arrays to fill."""
    call: Callable[[str, Sequence[int]], None]
    """Calls a kernel with the addresses of its operands."""
    memory: Memory
    _temporaries: dict[int, Any] = field(default_factory=dict)
    """By their index in the map of the arena."""

    def run(self) -> None:
        """Fill the results."""
        for number, (kernel, operands, *size) in enumerate(self.entry["calls"]):
            used = [self._array(number, position, offset) for position, offset in operands]
            if size:  # a copy
                target, origin = used
                self.memory.move(target, origin, *size)
            else:
                self.call(kernel, [self.memory.address(array) + inside for array, inside in used])
            for at in [at for at in self._temporaries if self.entry["arena_map"][at][4] <= number]:
                del self._temporaries[at]

    def _array(self, number: int, position: int, offset: int) -> tuple[Any, int]:
        """The array of an operand, and the operand's offset in it."""
        if position < len(self.entry["table"]):
            name = self.entry["table"][position]["name"]
            is_result = name.startswith("result.")
            return self.results[int(name.removeprefix("result."))] if is_result else self.source(name), offset
        for at, (_, start, size, first, last) in enumerate(self.entry["arena_map"]):
            if first <= number <= last and start <= offset < start + size:
                if at not in self._temporaries:
                    self._temporaries[at] = self.memory.allocate([size], "uint8")
                return self._temporaries[at], offset - start
        raise ValueError(f"call {number} of 'prepare' reads {offset} in the arena, where nothing lies")
