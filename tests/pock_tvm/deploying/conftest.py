"""Servers of TVM's RPC for the tests of remote devices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pock_tvm.deploying.servers import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server("rpc_server")
    yield started
    started.kill()


@pytest.fixture
def doomed() -> Iterator[list[Server]]:
    """Servers of one test, which it may kill; a first one is there."""
    servers = [Server("rpc_server")]
    yield servers
    for each in servers:
        each.kill()


@pytest.fixture(scope="module")
def tracker(server) -> Iterator[Server]:
    started = Server("rpc_tracker")
    device = Server("rpc_server", "--tracker", started.address, "--key", "shelf")
    yield started
    device.kill()
    started.kill()
