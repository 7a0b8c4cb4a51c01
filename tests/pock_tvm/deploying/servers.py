"""Servers of TVM's RPC on this machine, and programs to train there."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil

import pock_tvm as pock
from pock_tvm.deploying.connection import Address, Connection, connected
from tests.pock_tvm.networks import small

PATIENCE_S = 90
"""The machine of the tests may be busy."""


class Server:
    """A process of TVM's RPC on this machine, with the ones that it starts."""

    def __init__(
        self, kind: str | Path, *options: object, python: object = sys.executable, port: int | None = None
    ) -> None:
        self.address = Address("127.0.0.1", port or free_port())
        if isinstance(kind, Path):  # a script of ours
            words = [python, kind, *self.address, *options]
        else:
            place = ["--host", "127.0.0.1", "--port", self.address.port, "--port-end", self.address.port + 1]
            words = [python, "-m", f"tvm.exec.{kind}", *place, "--silent", *options]
        self.process = subprocess.Popen(
            list(map(str, words)),
            env=os.environ | {"TVM_NUM_THREADS": "1", "TVM_USE_RUNTIME_LIB": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def connect(self, timeout: float = PATIENCE_S) -> Connection:
        return connected(lambda: Connection(self.address, timeout=timeout), PATIENCE_S)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def freeze(self) -> None:
        for child in self.children():
            child.suspend()


def free_port() -> int:
    """A port that nothing uses, below those that the system hands out to clients."""
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


def build(**options) -> pock.Program:
    scheme = pock.Scheme({"*": "frozen", "*.bias": "full", "head.weight": "full", "blocks.1.conv2.weight": 0.5})
    chosen = {"scheme": scheme, "optimizer": pock.SGD(momentum=0.9), "check": False, "batch_norm": "frozen", **options}
    return pock.compile(small(4), **chosen)


def batches(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal((4, 3, 8, 8)).astype("float32") for _ in range(count)]
    return xs, [rng.integers(0, 5, 4) for _ in range(count)]
