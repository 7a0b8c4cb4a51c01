"""Worker process of the tuner: builds schedules of kernels, and measures them here or on a device over RPC.

It is a process of its own, since what it builds or runs may crash or hang: see :mod:`pock_tvm.tuning.measurer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import tvm

from relay_passes.ir import first_line
from schedules.decisions import Decisions

from ..compiler.database import Trial
from ..compiler.targets import instructions_of, resolve_target, triple_of
from ..deploying.endpoint import Endpoint
from ..device.machine import CORES
from ..device.measuring.bench import Bench, Built
from ..device.measuring.child import from_parent
from ..device.measuring.worker import open_bench
from ..errors import DeviceError
from .builder import Builder
from .remote import RefusedError, RemoteBench, RemoteDevice

READY, RUNNING, DONE = "ready", "running", "done"
"""Kinds of messages: the worker has a kernel; it runs a schedule; a trial."""
REFUSED, UNFIT, LOST = "refused", "unfit", "lost"
"""Kinds of messages that end a request, with their reason: the kernel cannot be measured; the device cannot be used; it
has gone."""


class Workplace:
    """A kernel, and the bench that measures its schedules."""

    def __init__(self, endpoint: Endpoint | None) -> None:
        self._endpoint = endpoint
        self._device: RemoteDevice | None = None
        self._known: tuple[str, str] | None = None
        self._builder: Builder | None = None
        self._bench: Bench[Any] | RemoteBench | None = None

    @property
    def is_apart(self) -> bool:
        """Whether the device is another machine."""
        return self._endpoint is not None

    def reach(self, target: str) -> None:
        """Connect to the device, unless it is this machine. Errors: as those of :class:`RemoteDevice`."""
        if self._endpoint is not None and self._device is None:
            resolved = resolve_target(target)
            facts = {"triple": triple_of(resolved), "instructions": instructions_of(resolved)}
            self._device = RemoteDevice(self._endpoint.connect(), facts)

    def open_kernel(self, definition: str, target: str) -> None:
        """Open a kernel, unless it is open."""
        if self._known == (definition, target):
            return
        self._known = self._bench = None  # the memory of the last kernel goes first
        self._builder = Builder(tvm.ir.load_json(definition), resolve_target(target), is_here=not self.is_apart)
        kernel = self._builder.kernel()
        self._bench = open_bench(kernel) if self._device is None else RemoteBench(self._device, kernel)
        self._known = definition, target

    def lose(self) -> None:
        """Forget a device that has gone."""
        self._device = self._known = None

    def built(self, points: Sequence[Decisions], pool: ThreadPoolExecutor) -> Iterable[Built | str]:
        """Build schedules; yield why where one cannot be built."""
        assert self._builder is not None
        builds = [pool.submit(self._builder.build, point) for point in points]

        def result(build: Any) -> Built | str:
            try:
                return build.result()
            except Exception as error:
                return f"cannot be built: {first_line(error)}"

        results = map(result, builds)
        # What is built meanwhile would disturb what is measured here.
        return results if self.is_apart else list(results)

    def measure(self, built: Built | str, point: Decisions) -> Trial:
        """Return the trial of a schedule. Errors of the device: as those of :class:`RemoteDevice`."""
        assert self._bench is not None
        if isinstance(built, str):
            return Trial(point, None, None, built)
        try:
            return Trial(point, *self._bench.measure(built))
        except Exception as error:
            if self.is_apart and isinstance(error, DeviceError):
                raise
            return Trial(point, None, None, f"fails: {first_line(error)}")


def serve(connection: Connection) -> None:
    """Answer requests until the parent is gone. The first message is the device's endpoint; a request is ``(definition,
    target, [decisions])``, without a definition to reach the device alone."""
    place = Workplace(connection.recv())
    with ThreadPoolExecutor(CORES) as pool:
        while True:
            try:
                request = connection.recv()
            except EOFError:
                return
            try:
                _answer(connection, place, pool, *request)
            except DeviceError as error:
                place.lose()
                connection.send((LOST, str(error)))
            except RefusedError as error:
                connection.send((UNFIT, str(error)))


def _answer(
    connection: Connection,
    place: Workplace,
    pool: ThreadPoolExecutor,
    definition: str | None,
    target: str,
    points: Sequence[Decisions],
) -> None:
    place.reach(target)
    if definition is None:
        connection.send((READY, None))
        return
    try:
        place.open_kernel(definition, target)
    except Exception as error:
        if isinstance(error, DeviceError) and place.is_apart:
            raise
        connection.send((REFUSED, first_line(error)))
        return
    connection.send((READY, None))
    for number, (point, built) in enumerate(zip(points, place.built(points, pool), strict=True)):
        connection.send((RUNNING, number))
        connection.send((DONE, place.measure(built, point)))


def main(descriptor: int) -> None:
    """Serve the parent's connection."""
    serve(from_parent(descriptor))
