"""Interface of a back end: a device's memory, and lists of commands that are submitted as a whole."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import DeviceError

MIB = 2**20
LESS_MEMORY = "Train less, or a smaller batch, or give compile a memory_budget"
"""Advice where a device has too little memory."""


class Region(NamedTuple):
    """Part of a buffer: offset and size in bytes."""

    buffer: Any
    offset: int
    size: int


@dataclass(frozen=True)
class Launch:
    """Launch of a device function on regions of memory."""

    kernel: str
    """Kernel whose text holds the function."""
    symbol: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Region, ...]


@dataclass(frozen=True)
class CopyBytes:
    """Copy between regions of one size."""

    to: Region
    source: Region


Command = Launch | CopyBytes


class LostError(DeviceError):
    """A device fails at what it was given, and may not answer any more."""

    def __init__(self, device: str, said: str, where: str = "in a new trainer") -> None:
        super().__init__(
            f"{device} stops: {said}. What was read or saved before still holds, and the steps since are lost: restore "
            f"the last checkpoint {where}"
        )


class Backend(ABC):
    """A device, and how it is spoken to. Commands run in the order in which they are submitted."""

    alignment: int
    """Alignment of a region's offset, in bytes."""
    integer_bits: int = 64
    """Bits of the widest integers that kernels compute with."""
    name: str
    """Name of the device, for messages."""
    clock = "the device's clock"
    """Clock that times a list, for reports."""

    def lacks(self, instructions: Sequence[str]) -> str:
        """What the device has not of these instruction sets, and what to do; empty if it has them."""
        return ""

    def free_bytes(self) -> int | None:
        """Most bytes of memory that may be free; None if the device does not tell."""
        return None

    def largest_buffer(self) -> int | None:
        """Most bytes of a buffer; None if only the memory limits it."""
        return None

    @abstractmethod
    def allocate(self, size: int) -> Any:
        """A buffer of so many zero bytes.

        Raises
        ------
        DeviceError
            There is too little memory: how much is needed, and as far as the device tells, how much is there.
        """

    def refuse_buffer(self, size: int) -> None:
        """Refuse a buffer that is larger than any."""
        most = self.largest_buffer()
        if most is not None and size > most:
            raise DeviceError(
                f"{self.name} has buffers of at most {most / MIB:.1f} MiB, and the program needs one of "
                f"{size / MIB:.1f}: compile it with a smaller batch or a memory budget"
            )

    @abstractmethod
    def write(self, region: Region, values: np.ndarray) -> None:
        """Put bytes into a region."""

    @abstractmethod
    def read(self, region: Region) -> np.ndarray:
        """The bytes of a region, as uint8, when everything that was submitted is done."""

    @abstractmethod
    def load(self, kernel: str, text: bytes) -> None:
        """Make the functions of a kernel's text ready for launches."""

    @abstractmethod
    def record(self, commands: Sequence[Command]) -> Any:
        """Make a list that can be submitted any number of times."""

    @abstractmethod
    def submit(self, recorded: Any) -> None:
        """Run a list, after everything that was submitted before. It need not be done when this returns."""

    def seconds(self, recorded: Any) -> float:
        """Run a list by itself, and return how long it ran: by a clock of the device, where it has one."""
        self.finish()
        start = time.perf_counter()
        self.submit(recorded)
        self.finish()
        return time.perf_counter() - start

    @abstractmethod
    def finish(self) -> None:
        """Wait until everything that was submitted is done."""
