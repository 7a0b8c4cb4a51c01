"""Measures on a device over RPC, by the measuring function of its server (:mod:`pock_tvm.device.measuring.service`)."""

from __future__ import annotations

import itertools
import json
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..deploying.connection import Connection
from ..device.measuring.bench import Built, Kernel, Timing
from ..device.measuring.service import NAME, VERSION
from ..device.program import Program
from ..errors import PockError

SHARE = 1 / 3
"""Share of a call's time after which what runs on the device counts as hanging: a call may first start a process there,
and open the kernel."""


class RefusedError(PockError):
    """A device answers, and says why it does not do what it was asked for."""


class RemoteDevice:
    """A device's measuring function, for programs of one target (a manifest's).

    Raises
    ------
    RefusedError
        Its server has no measuring function, or one of another version; or it does not run programs for the target.
    DeviceError
        It has gone, or did not answer in time. So does every method.
    """

    def __init__(self, connection: Connection, target: Mapping[str, Any]) -> None:
        self._connection, self._numbers = connection, itertools.count()
        self._dropped: list[int] = []
        try:
            self._function = connection.function(NAME)
        except (AttributeError, ValueError, RuntimeError) as error:
            raise RefusedError(
                f"the server at {connection.name} does not measure: start examples/remote/serve.py with --measure there"
            ) from error
        self.ask("target", target=dict(target))

    def ask(self, method: str, code: bytes = b"", **arguments: Any) -> Any:
        """Return the answer to a request."""
        record = {"version": VERSION, "method": method, "limit": SHARE * self._connection.timeout, **arguments}
        answer = json.loads(self._connection.call(self._function, json.dumps(record), bytearray(code)))
        if "refused" in answer:
            raise RefusedError(f"the device at {self._connection.name} refuses: {answer['refused']}")
        return answer["result"]

    def load(self, program: Program, owner: object) -> int:
        """Send a program, and return its number there. It is dropped with the next one after its owner has gone."""
        number, dropped = next(self._numbers), [self._dropped.pop() for _ in range(len(self._dropped))]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "program.pock"
            program.save(path, slim=True)
            self.ask("program", path.read_bytes(), number=number, dropped=dropped)
        weakref.finalize(owner, self._dropped.append, number)
        return number

    def close(self) -> None:
        """End the session, so that the device is free for others."""
        self._connection.close()


class RemoteBench:
    """Bench of a kernel on a device: as :class:`pock_tvm.device.measuring.bench.Bench`."""

    def __init__(self, device: RemoteDevice, kernel: Kernel) -> None:
        self._device, default = device, kernel.default
        facts = {"target": dict(kernel.target), "operands": kernel.operands, "sets": kernel.sets}
        device.ask("kernel", default.code, scratch=default.scratch, **facts)

    def measure(self, built: Built) -> Timing:
        """Check and time a schedule."""
        return Timing(*self._device.ask("measure", built.code, scratch=built.scratch))


class RemoteSteps:
    """Steps of a program on a device: as :class:`pock_tvm.device.measuring.steps.Steps`."""

    def __init__(self, device: RemoteDevice, program: Program) -> None:
        self._device, self._number = device, device.load(program, self)

    def kernel_seconds(self) -> dict[str, float]:
        """Return the seconds that each kernel takes in a step, all its calls together."""
        return self._device.ask("kernel_seconds", number=self._number)

    def seconds(self) -> float | None:
        """Take a step, and return its seconds; None if it stops at a number that is not finite, which says nothing."""
        return self._device.ask("step_seconds", number=self._number)
