"""Sessions with TVM's RPC servers: whatever becomes of the other side, each call ends in time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import tvm

from pock_tvm.deploying.connection import Address, Connection, connected, devices
from pock_tvm.errors import DeviceError
from tests.pock_tvm.deploying.servers import PATIENCE_S, Server

LARGE = 2**25
"""Bytes that the C library gives back to the system."""


def test_a_device_in_use_is_waited_for_no_longer_than_the_timeout(tracker) -> None:
    first = connected(lambda: Connection.through(tracker.address, "shelf"), PATIENCE_S)
    with pytest.raises(DeviceError, match="had no free device 'shelf' within 1 s"):
        Connection.through(tracker.address, "shelf", timeout=1)
    first.close()


def test_a_port_that_answers_nothing_ends_with_the_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = Address(*silent.getsockname())
        with pytest.raises(DeviceError, match=r"no answer within 0\.5 s"):
            Connection(address, timeout=0.5)
        with pytest.raises(DeviceError, match=r"no answer within 0\.5 s"):
            devices(address, timeout=0.5)


def test_a_port_whose_queue_is_full_ends_with_the_timeout() -> None:
    with socket.socket() as full, contextlib.ExitStack() as clients:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        with pytest.raises(DeviceError, match=r"no answer within 0\.5 s"):
            Connection(Address(*full.getsockname()), timeout=0.5)


def test_a_second_client_of_a_server_leaves_the_first_one_alone(server) -> None:
    first = server.connect()
    with pytest.raises(DeviceError, match="no answer within 1 s: it may serve another client"):
        Connection(server.address, timeout=1)
    assert tensor(first).numpy().tolist() == [0, 1, 2, 3]
    first.close()
    second = server.connect()
    del first  # what it held goes through no other session
    assert tensor(second).numpy().tolist() == [0, 1, 2, 3]
    second.close()


def tensor(connection: Connection) -> tvm.runtime.Tensor:
    """The numbers from 0 to 3 on a device."""
    made = connection.call(lambda: tvm.runtime.empty((4,), "uint8", device=connection.memory))
    connection.call(made.copyfrom, np.arange(4, dtype="uint8"))
    return made


class Owner:
    """Something that a thing of the device belongs to."""


def test_what_is_not_used_any_more_is_given_back_with_the_next_call(server) -> None:
    connection, values = server.connect(), np.ones(LARGE, "uint8")
    session = max(server.children(), key=lambda child: child.create_time())
    before = session.memory_info().rss
    for _ in range(6):
        owner = Owner()
        array = connection.call(lambda: tvm.runtime.empty(values.shape, "uint8", device=connection.memory))
        connection.owned(owner, array)
        connection.call(array.copyfrom, values)
        del array, owner
    assert session.memory_info().rss - before < 4 * LARGE
    connection.close()


@contextlib.contextmanager
def thawed_after(server: Server, seconds: int) -> Iterator[None]:
    """Let a frozen server go on after a while, by another process: the test fails then, and does not hang."""
    words = f"sleep {seconds}; kill -CONT {' '.join(str(child.pid) for child in server.children())}"
    rescue = subprocess.Popen(["sh", "-c", words], start_new_session=True)
    yield
    os.killpg(rescue.pid, signal.SIGKILL)
    rescue.wait()


def test_giving_back_what_a_hanging_device_held_ends_in_time(doomed) -> None:
    doomed[0].connect().close()
    connection, owner = doomed[0].connect(timeout=2), Owner()
    connection.owned(owner, tensor(connection))
    doomed[0].freeze()
    start = time.monotonic()
    with thawed_after(doomed[0], 60):
        del owner
        with pytest.raises(DeviceError, match="no answer within 2 s"):
            connection.call(lambda: None)
        with pytest.raises(DeviceError, match="no answer within 2 s"):
            connection.call(lambda: None)
    assert time.monotonic() - start < 50


def test_a_session_with_a_hanging_device_can_be_dropped_whole(doomed) -> None:
    doomed[0].connect().close()
    connection, owner = doomed[0].connect(), Owner()
    connection.owned(owner, tensor(connection))
    doomed[0].freeze()
    start = time.monotonic()
    with thawed_after(doomed[0], 60):
        del owner, connection
    assert time.monotonic() - start < 50


@contextlib.contextmanager
def interrupted() -> Iterator[None]:
    """Ctrl-C, each second until it is noticed: one that comes just before a wait begins does not end it."""
    noticed, before = threading.Event(), signal.getsignal(signal.SIGINT)
    main = threading.main_thread().ident

    def interrupt(*_: object) -> None:
        if not noticed.is_set():
            noticed.set()
            raise KeyboardInterrupt

    def send() -> None:
        while not noticed.wait(1):
            signal.pthread_kill(main, signal.SIGINT)

    signal.signal(signal.SIGINT, interrupt)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        noticed.set()
        sender.join()
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_call_ends_the_session(doomed) -> None:
    """The answer that comes late would be taken for that of the next call."""
    connection = doomed[0].connect()
    values = tensor(connection)
    doomed[0].freeze()
    with thawed_after(doomed[0], 40), pytest.raises(KeyboardInterrupt), interrupted():
        connection.call(values.numpy)
    with pytest.raises(DeviceError, match="was interrupted"):
        connection.call(values.numpy)
