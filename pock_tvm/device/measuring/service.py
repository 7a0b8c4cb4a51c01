"""The measuring function of a device's RPC server: schedules and programs in, seconds out.

:func:`register` makes it known to TVM's RPC in this process. A request is JSON and bytes: ``version``
(:data:`VERSION`), ``method``, ``limit`` (seconds until what runs counts as hanging) and the method's arguments; the
bytes are the code of a schedule, or a program. The answer is JSON: ``result``; or ``refused``, the reason why there is
none.

What is measured runs in a process of its own. A schedule that crashes or hangs costs that process, and no session.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm_ffi

from ..errors import PockError
from ..reading import reason
from .bench import Built, Kernel, Timing
from .child import Child, Death
from .operands import Operand

NAME = "pock_tvm.measure"
"""Global function of the server."""
VERSION = 1
"""Version of requests and answers."""
WORKER = "pock_tvm.device.measuring.worker"


class Refusal(PockError):
    """A request cannot be done; the message is for the other side."""


class Service:
    """The measuring function of one session. Its methods are those of requests."""

    def __init__(self) -> None:
        self._child = Child(WORKER)
        self._kernel: Kernel | None = None
        self._is_open = False
        """Whether the process has the kernel."""

    def __call__(self, request: str, code: bytes) -> str:
        """Do what a request asks for."""
        try:
            record = json.loads(request)
            if record["version"] != VERSION:
                raise Refusal(f"it speaks version {VERSION}, and this is version {record['version']}")
            method, limit = record["method"], record["limit"]
            return json.dumps({"result": getattr(self, f"do_{method}")(record, bytes(code), limit)})
        except Exception as error:
            return json.dumps({"refused": reason(error)})

    def do_target(self, record: Mapping[str, Any], _code: bytes, limit: float) -> None:
        """Refuse a target that this device does not run."""
        self._ask("check", (record["target"],), limit)

    def do_kernel(self, record: Mapping[str, Any], code: bytes, limit: float) -> None:
        """Open a kernel, with the code of its default schedule."""
        operands = tuple(Operand(tuple(shape), dtype) for shape, dtype in record["operands"])
        self._kernel = Kernel(record["target"], operands, record["sets"], Built(code, tuple(record["scratch"])))
        self._is_open = False
        self._open_kernel(limit)

    def do_measure(self, record: Mapping[str, Any], code: bytes, limit: float) -> Timing:
        """Check and time a schedule of the kernel, given its code."""
        self._open_kernel(limit)
        try:
            return Timing(*self._ask("measure", (Built(code, tuple(record["scratch"])),), limit))
        except Death as death:
            return Timing(None, None, str(death))
        except Refusal as fault:
            return Timing(None, None, f"fails: {fault}")

    def do_program(self, record: Mapping[str, Any], code: bytes, limit: float) -> None:
        """Take a program, under a number, and drop those that are not needed any more."""
        path = Path(f"program-{record['number']}.pock")  # in the session's folder
        path.write_bytes(code)
        self._ask("open_program", (record["number"], str(path), record["dropped"]), limit)

    def do_kernel_seconds(self, record: Mapping[str, Any], _code: bytes, limit: float) -> dict[str, float]:
        """Return the seconds of each kernel in a step of a program."""
        return self._ask("kernel_seconds", (record["number"],), limit)

    def do_step_seconds(self, record: Mapping[str, Any], _code: bytes, limit: float) -> float | None:
        """Take a step of a program, and return its seconds; None if it stops at a number that is not finite."""
        return self._ask("step_seconds", (record["number"],), limit)

    def _open_kernel(self, limit: float) -> None:
        if self._kernel is None:
            raise Refusal("no kernel was opened")
        if not self._is_open:
            self._ask("open_kernel", (self._kernel,), limit)
            self._is_open = True

    def _ask(self, method: str, arguments: tuple[Any, ...], limit: float) -> Any:
        try:
            self._child.send((method, arguments))
            is_well, result = self._child.receive(limit)
        except Death:
            self._child.end()
            self._is_open = False
            raise
        if not is_well:
            raise Refusal(result)
        return result


def register() -> None:
    """Make the measuring function known to the RPC sessions of this process and its forks."""
    tvm_ffi.register_global_func(NAME, Service().__call__, override=True)
