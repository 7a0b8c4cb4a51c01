"""A process of its own for what may crash or hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

CODE = "import sys; from {} import main; main(int(sys.argv[1]))"
WATCH = 1.0
"""Seconds between two looks at whether the parent is still there."""


class Death(Exception):  # noqa: N818 - an event
    """A process died, or hangs. The message says how."""


class Child:
    """A Python process that is started at the first message and kept. A context manager: the process ends with it.

    ``module`` has a function ``main(descriptor)``, which begins with :func:`from_parent` and answers messages.
    """

    def __init__(self, module: str) -> None:
        self._module, self._is_over = module, False
        self._lock = threading.Lock()
        """Another thread may end the process while one waits for it."""
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        with self._lock:
            self._is_over = True
        self.end()

    @property
    def pid(self) -> int | None:
        """Number of the process; None if there is none."""
        return None if self._process is None else self._process.pid

    def send(self, message: object) -> None:
        """Send a message, to a new process if there is none.

        Raises
        ------
        Death
            The process is dead.
        """
        try:
            self._opened().send(message)
        except OSError as error:
            raise Death(self._last_words()) from error

    def receive(self, limit: float) -> Any:
        """Wait for a message, at most ``limit`` seconds.

        Raises
        ------
        Death
            The process died, or said nothing.
        """
        connection, process = self._connection, self._process
        if connection is None or process is None:
            raise Death("was ended")
        # In slices: one in which this process was stopped, too, counts once.
        for _ in range(max(1, round(limit))):
            try:
                if connection.poll(1):
                    return connection.recv()
            except (EOFError, OSError) as error:
                raise Death(self._last_words()) from error
            if process.poll() is not None and not connection.poll(0):
                raise Death(self._last_words())
        raise Death(f"hangs: nothing for {limit:g} s")

    def end(self) -> None:
        """End the process, whatever it does. The next message starts a new one."""
        with self._lock:
            process, connection = self._process, self._connection
            self._process = self._connection = None
        if process is not None:
            process.kill()
            process.wait()
        if connection is not None:
            connection.close()

    def _last_words(self) -> str:
        if self._process is None:
            return "was ended"
        code = self._process.wait()
        return f"crashes: {signal.Signals(-code).name}" if code < 0 else f"ends the process with code {code}"

    def _opened(self) -> Connection[Any, Any]:
        with self._lock:
            if self._is_over:
                raise Death("was ended")
            if self._connection is None:
                self._connection, other = Pipe()
                self._process = self._started(other.fileno())
                other.close()
            return self._connection

    def _started(self, descriptor: int) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).resolve().parents[3])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.Popen(
            [sys.executable, "-c", CODE.format(self._module), str(descriptor)],
            pass_fds=[descriptor],
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # LLVM writes there before it aborts
        )


def from_parent(descriptor: int) -> Connection:
    """Return the connection of this process with its parent. The process ends with its parent, however that dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return Connection(descriptor)
