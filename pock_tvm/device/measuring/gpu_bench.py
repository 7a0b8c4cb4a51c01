"""Measures the schedules of a kernel on a GPU, by the back ends of :mod:`pock_tvm.device.gpu`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..gpu.devices import open_device
from ..gpu.library import LaunchLibrary, Table
from ..gpu.memory import DeviceArray, DeviceMemory
from ..library import CALL_KERNEL
from .bench import Bench, Built
from .operands import PATTERN, Operand


class GpuBench(Bench["GpuKernel"]):
    """Bench of a GPU: a round is launches, one after the other, timed by the device's clock where it has one.

    Errors: as :func:`pock_tvm.device.gpu.devices.open_device`.
    """

    def prepare(self) -> None:
        """Open the first device of the target's dialect, and make the memory that rounds go through."""
        dialect = self.kernel.target["triple"]
        self.backend = open_device(dialect, dialect, self.kernel.target.get("instructions", ()))
        self.memory = DeviceMemory(self.backend)
        self.copies = [DeviceOperands(self, ()) for _ in range(self.sets)]
        for copy in self.copies:
            copy.fill(self.inputs[0])

    def load(self, built: Built) -> GpuKernel:
        """Compile a schedule's text on the device."""
        return GpuKernel(self, built)

    def results(self, loaded: GpuKernel, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once on operands of some values, and return the operands."""
        operands = DeviceOperands(self, loaded.scratch)
        operands.fill(values)
        loaded.library.run(CALL_KERNEL, loaded.library.table([0, *operands.addresses]))
        return operands.read()

    def seconds(self, loaded: GpuKernel, passes: int) -> float:
        """Return the seconds of a run, over so many passes through all copies of the operands."""
        times = [
            loaded.library.seconds(CALL_KERNEL, table) for _ in range(passes) for table in loaded.tables(self.copies)
        ]
        return sum(times) / len(times)


class GpuKernel:
    """A schedule on a device."""

    def __init__(self, bench: GpuBench, built: Built) -> None:
        self.scratch = tuple(Operand((size,), "uint8") for size in built.scratch)
        """Intermediate results of its launches."""
        self.library = LaunchLibrary(built.code, {}, bench.backend, bench.memory)
        self._scratch = DeviceOperands(bench, self.scratch, is_whole=False)
        self._tables: list[Table] = []

    def tables(self, copies: Sequence[DeviceOperands]) -> list[Table]:
        """Return the calls on copies of the operands, with the same scratch."""
        if not self._tables:
            self._tables = [self.library.table([0, *copy.addresses, *self._scratch.addresses]) for copy in copies]
        return self._tables


class DeviceOperands:
    """One allocation for a kernel's operands, and more, with guards between them.

    ``more``: what follows the kernel's operands. With ``is_whole`` false it is all there is.
    """

    def __init__(self, bench: GpuBench, more: Sequence[Operand], *, is_whole: bool = True) -> None:
        self._memory, step = bench.memory, bench.backend.alignment
        self._operands = [*(bench.operands if is_whole else ()), *more]
        self._count = len(bench.operands) if is_whole else 0
        self._starts, end = [], step
        for each in self._operands:
            self._starts.append(end)
            end += (math.ceil(each.nbytes / step) + 1) * step
        self._place: DeviceArray = bench.memory.allocate((end,), "uint8")

    @property
    def addresses(self) -> list[int]:
        """Addresses of all, in order."""
        return [self._place.start + start for start in self._starts]

    def fill(self, values: Sequence[np.ndarray]) -> None:
        """Copy values into the operands."""
        content = np.full(self._place.shape, PATTERN, "uint8")
        for start, value in zip(self._starts, values, strict=False):
            content[start : start + value.nbytes] = value.reshape(-1).view("uint8")
        self._memory.write(self._place, content)

    def read(self) -> list[np.ndarray]:
        """Return the kernel's operands.

        Raises
        ------
        RuntimeError
            Something was written between them.
        """
        content = self._memory.read(self._place).copy()
        found = [
            content[start : start + each.nbytes].view(each.dtype).reshape(each.shape).copy()
            for start, each in zip(self._starts, self._operands[: self._count], strict=False)
        ]
        for start, each in zip(self._starts, self._operands, strict=True):
            content[start : start + each.nbytes] = PATTERN
        if not (content == PATTERN).all():
            raise RuntimeError("it writes outside its operands")
        return found
