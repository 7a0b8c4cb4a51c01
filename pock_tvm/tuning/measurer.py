"""Measures schedules in a worker process, and survives whatever they do to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

from schedules.decisions import Decisions

from ..compiler.database import Trial
from ..deploying.endpoint import Endpoint
from ..device.measuring.child import Child, Death
from ..errors import DeviceError, PockError
from .worker import LOST, REFUSED, UNFIT

BUILD_LIMIT, RUN_LIMIT = 120, 30
"""Seconds until a worker that builds a batch, or runs one schedule, counts as hanging."""
CALLS = 3
"""Most calls of a device between two messages of a worker: each ends within the endpoint's timeout."""
WORKER = "pock_tvm.tuning.worker"


class MeasuringError(PockError):
    """A kernel cannot be measured, whatever its schedule."""


class LostError(DeviceError):
    """A device has gone; ``running`` is the schedule that it had then."""

    def __init__(self, message: str, running: Decisions | None = None) -> None:
        super().__init__(message)
        self.running = running


class Measure(Protocol):
    """Measures schedules of a kernel on one device that they are for."""

    def measure(self, definition: str, target: str, points: Sequence[Decisions]) -> Iterator[Trial]:
        """Yield a trial for each point, in any order, as they are done.

        ``definition`` is the kernel as JSON, ``target`` TVM's target as text.

        Raises
        ------
        MeasuringError
            The kernel's default schedule fails.
        LostError
            The device has gone. :meth:`reach` is called until it is back.
        """

    def reach(self, target: str) -> None:
        """Connect to the device, if there is a connection. Raises LostError if it is not there."""


class Measurer:
    """Measures in a process of this machine, which is started at the first use and kept: here, or on a device over RPC.

    A context manager: the process ends with it. After a schedule that crashes or hangs a new one is started.

    Errors: those of :class:`Measure`; PockError, if the device is there and of no use.
    """

    def __init__(
        self, endpoint: Endpoint | None = None, *, build_limit: int = BUILD_LIMIT, run_limit: int = RUN_LIMIT
    ) -> None:
        self._endpoint = endpoint
        calls = CALLS * endpoint.timeout if endpoint is not None else 0
        self._limits = build_limit + calls, run_limit + calls
        self._child, self._is_over = Child(WORKER), False

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._is_over = True
        self._child.__exit__(kind, value, trace)

    def reach(self, target: str) -> None:
        """Connect to the device, unless it is this machine."""
        try:
            for _ in self._answers(None, target, []):
                pass
        except Death as death:
            self._child.end()
            raise LostError(str(death)) from death

    def measure(self, definition: str, target: str, points: Sequence[Decisions]) -> Iterator[Trial]:
        """Yield a trial for each point (:class:`Measure`)."""
        batches = [list(points)] if points else []
        while batches:
            batch = batches.pop()
            left, running = list(batch), None
            try:
                for number, trial in self._answers(definition, target, batch):
                    running = batch[number] if trial is None else None
                    if trial is not None:
                        left.remove(trial.decisions)
                        yield trial
            except LostError as lost:
                raise LostError(str(lost), running) from lost
            except Death as death:
                if self._is_over:
                    return
                self._child.end()
                # Of a batch that dies while it is built, each is tried alone.
                guilty = running if running is not None else left[0] if len(batch) == 1 else None
                if guilty is not None:
                    left.remove(guilty)
                    yield Trial(guilty, None, None, str(death))
                    batches += [left] if left else []
                else:
                    batches += [[point] for point in left]

    def _answers(
        self, definition: str | None, target: str, points: Sequence[Decisions]
    ) -> Iterator[tuple[int, Trial | None]]:
        """Yield the number of each schedule when it runs, without a trial, and then with it."""
        build_limit, run_limit = self._limits
        if self._child.pid is None:
            self._child.send(self._endpoint)
        self._child.send((definition, target, list(points)))
        self._receive(build_limit)
        for number in range(len(points)):
            yield self._receive(build_limit), None
            yield number, self._receive(run_limit)

    def _receive(self, limit: float) -> Any:
        kind, value = self._child.receive(limit)
        if kind == REFUSED:
            raise MeasuringError(f"the default schedule fails: {value}")
        if kind == UNFIT:
            raise PockError(value)
        if kind == LOST:
            raise LostError(value)
        return value
