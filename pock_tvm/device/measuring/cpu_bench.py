"""Measures the schedules of a kernel on this machine's CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..memory import aligned
from ..runtime import HostLibrary, load_library
from .bench import Bench, Built
from .operands import Memory

REPEAT = "repeat"
"""Entry point of a built schedule, which calls it many times. Its int64 vector holds the number of passes, the number
of calls of a pass, and the addresses of each call's operands."""


class Loaded(NamedTuple):
    """Kernel in memory."""

    library: HostLibrary
    scratch: list[np.ndarray]
    """Memory for its own buffers, as in a step the same for all runs."""


class CpuBench(Bench[Loaded]):
    """Bench of a CPU, which has the instructions of what was built."""

    def prepare(self) -> None:
        """Make the memory that rounds go through."""
        self._memories = [Memory(self.operands) for _ in range(self.sets)]
        for memory in self._memories:
            memory.fill(self.inputs[0])

    def load(self, built: Built) -> Loaded:
        """Load a schedule."""
        return Loaded(load_library(built.code), [aligned((size,), "uint8") for size in built.scratch])

    def results(self, loaded: Loaded, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once on operands of some values, and return the operands."""
        memory = Memory(self.operands)
        memory.fill(values)
        loaded.library.run(REPEAT, _table(loaded, 1, [memory]))
        if not memory.is_intact():
            raise RuntimeError("it writes outside its operands")
        return memory.arrays()

    def seconds(self, loaded: Loaded, passes: int) -> float:
        """Return the seconds of a run, over so many passes through all copies of the operands."""
        table = _table(loaded, passes, self._memories)
        return loaded.library.seconds(REPEAT, table) / (passes * len(self._memories))


def _table(loaded: Loaded, passes: int, memories: Sequence[Memory]) -> Any:
    scratch = [each.ctypes.data for each in loaded.scratch]
    addresses = [address for memory in memories for address in (*memory.addresses, *scratch)]
    return loaded.library.table([passes, len(memories), *addresses])
