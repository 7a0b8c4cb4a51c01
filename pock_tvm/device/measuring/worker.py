"""Process that runs what is measured: schedules of kernels, and steps of programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from ..errors import ProgramError
from ..gpu.devices import BACKENDS, open_device
from ..instructions import obstacle_here
from ..program import Program
from ..reading import reason
from .bench import Bench, Built, Kernel, Timing
from .child import from_parent
from .cpu_bench import CpuBench
from .gpu_bench import GpuBench
from .steps import Steps


def open_bench(kernel: Kernel) -> Bench[Any]:
    """Make the bench of a kernel for its kind of device. Errors: as those of the bench, or of the default schedule."""
    return GpuBench(kernel) if kernel.target["triple"] in BACKENDS else CpuBench(kernel)


class Worker:
    """A bench, and programs by number. Methods are the requests."""

    def __init__(self) -> None:
        self._bench: Bench[Any] | None = None
        self._programs: dict[int, Steps] = {}

    def check(self, target: Mapping[str, Any]) -> None:
        """Check that this device runs programs for a manifest's target.

        Raises
        ------
        PockError
            It does not: why.
        """
        if target["triple"] in BACKENDS:
            open_device(target["triple"], target["triple"], target.get("instructions", ()))
            return
        obstacle = obstacle_here(target)
        if obstacle is not None:
            raise ProgramError(obstacle)

    def open_kernel(self, kernel: Kernel) -> None:
        """Make the bench of a kernel."""
        self._bench = None  # the memory of the last kernel goes first
        self._bench = open_bench(kernel)

    def measure(self, built: Built) -> Timing:
        """Check and time a schedule of the kernel."""
        assert self._bench is not None
        return self._bench.measure(built)

    def open_program(self, number: int, path: str, dropped: Sequence[int]) -> None:
        """Load a program from a file, in place of others."""
        for each in dropped:
            self._programs.pop(each, None)
        self._programs[number] = Steps(Program.load(path))

    def kernel_seconds(self, number: int) -> dict[str, float]:
        """As :meth:`Steps.kernel_seconds`."""
        return self._programs[number].kernel_seconds()

    def step_seconds(self, number: int) -> float | None:
        """As :meth:`Steps.seconds`."""
        return self._programs[number].seconds()


def serve(connection: Connection) -> None:
    """Answer requests ``(method, arguments)`` until the parent is gone, by whether it is well, and the result."""
    worker = Worker()
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        request: Callable[..., Any] = getattr(worker, method)
        try:
            connection.send((True, request(*arguments)))
        except Exception as error:
            connection.send((False, reason(error)))


def main(descriptor: int) -> None:
    """Serve the parent's connection."""
    serve(from_parent(descriptor))
