"""The server of examples/remote: it goes on when a session has broken off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pock_tvm.deploying.connection import Connection, connected, devices
from pock_tvm.errors import DeviceError
from tests.pock_tvm.deploying.servers import PATIENCE_S, Server

SCRIPT = Path(__file__).parents[3] / "examples" / "remote" / "serve.py"


@pytest.fixture(scope="module")
def server(tracker) -> Iterator[Server]:
    started = Server(SCRIPT, "--tracker", tracker.address, "--key", "desk")
    yield started
    started.kill()


def session(server: Server) -> psutil.Process:
    """The process that serves the present client."""
    return max(server.children(), key=lambda child: child.create_time())


@pytest.mark.parametrize("breaks", [psutil.Process.kill, psutil.Process.suspend])
def test_a_session_that_breaks_off_is_not_the_last(breaks, server, tracker) -> None:
    def connect(timeout: float) -> Connection:
        return connected(lambda: Connection.through(tracker.address, "desk", timeout=timeout), PATIENCE_S)

    connection = connect(20)
    connection.function("runtime.config_threadpool")  # before an answer, its process may not be there yet
    breaks(session(server))
    with pytest.raises(DeviceError, match="does not answer any more"):
        connection.function("runtime.NumThreads")
    again = connect(PATIENCE_S)
    assert again.function("runtime.config_threadpool") is not None
    again.close()
    assert "desk" in {device.key for device in devices(tracker.address)[0]}
