"""Interface of what runs a program's entry points: a shared library, one on a remote device, launches on a GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .memory import Memory

CONTRACT = "contract"
"""The entry point that writes the digest of what the library relies on: see :mod:`pock_tvm.device.contract`."""
CALL_KERNEL = "call_kernel"
"""The entry point that calls one kernel: for the profile, which times each by itself."""


class CheckFailed(Exception):  # noqa: N818 - what a trainer makes an error of
    """An entry point stopped at a check that found a number that is not finite; ``position`` is its place in the call
    list."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


Outcome = Callable[[], np.ndarray]
"""Waits for a step and returns its result, or raises what :meth:`Library.run` does."""


class Library(ABC):
    """The entry points of a program. Each is called with one table, made of addresses."""

    clock = "the device's clock"
    """Clock that times entry points, for reports."""
    queues = False
    """Whether an entry point that was started runs on while its caller goes on."""

    @abstractmethod
    def table(self, addresses: Sequence[int]) -> Any:
        """Addresses as an entry point takes them; behind them a number, if its call list holds checks."""

    @abstractmethod
    def numbers(self, table: Any) -> list[int]:
        """The numbers that :meth:`table` was made of."""

    @abstractmethod
    def run(self, entry: str, table: Any) -> None:
        """Call an entry point. Calls of several threads are made one after the other.

        Raises
        ------
        CheckFailed
            It stopped at a number that is not finite.
        PockError
            It stopped at a kernel that failed: what it had written by then stays written.
        """

    @abstractmethod
    def seconds(self, entry: str, table: Any) -> float:
        """Call an entry point, and return how long it ran, by the device's clock."""

    def start(self, entry: str, table: Any, result: Any, memory: Memory) -> Outcome:
        """Start an entry point; its first result lies in an array of a memory. Here it runs when it is waited for."""

        def outcome() -> np.ndarray:
            self.run(entry, table)
            return memory.read(result)

        return outcome

    @abstractmethod
    def contract(self) -> list[int] | None:
        """The digest of the layouts and sizes that it was built for; None in one of an older version."""
