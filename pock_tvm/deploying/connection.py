"""Sessions with TVM's RPC servers, by address or through a tracker, whose calls end in time."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import psutil
import tvm
from tvm import rpc
from tvm.rpc import base

from ..device.arguments import number, require
from ..device.reading import reason
from ..errors import DeviceError, OptionError

T = TypeVar("T")
TIMEOUT_S = 60.0
"""Default of the time that a call may take: more than any step, less than a person's patience."""
SECONDS = number("a number of seconds, more than 0", above=0)


class Address(NamedTuple):
    """Host and port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``HOST:PORT``.

        Raises
        ------
        OptionError
            It is of another form.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise OptionError(f"'{text}' is no address: write HOST:PORT, such as 192.168.1.20:9090")
        return cls(host, int(port))


@dataclass(frozen=True)
class Device:
    """A server that a tracker knows."""

    key: str
    address: str


def devices(tracker: Address, *, timeout: float = TIMEOUT_S) -> tuple[list[Device], dict[str, int]]:
    """List the servers that a tracker knows, and how many of each key are free.

    Raises
    ------
    DeviceError
        The tracker cannot be reached, or is none.
    """
    summary = _ask(tracker, [base.TrackerCode.SUMMARY], timeout)
    with _understanding(tracker):
        servers = [
            Device(server["key"].removeprefix("server:"), ":".join(map(str, server["addr"])))
            for server in summary["server_info"]
            if server.get("key", "").startswith("server:")
        ]
        free = {key: int(queue["free"]) for key, queue in summary["queue_info"].items()}
    return sorted(servers, key=lambda each: (each.key, each.address)), free


class Connection:
    """A session with a device.

    A call that takes longer than ``timeout`` seconds, and one whose device has gone, raises DeviceError. After that
    the connection is of no use any more.
    """

    def __init__(self, address: Address, *, key: str = "", timeout: float = TIMEOUT_S) -> None:
        require("timeout", timeout, SECONDS, OptionError)
        self.name, self.timeout = str(address), timeout
        self._lost: DeviceError | None = None
        with self._talking("cannot be reached"):
            self._peer = _resolved(address)
        with self._talking(f"cannot be reached, or is no RPC server{f' of key {key!r}' if key else ''}"):
            self._session = rpc.connect(*self._peer, key)
        self.memory = self._session.cpu()
        """The device's memory, for ``tvm.runtime.empty``."""

    @classmethod
    def through(cls, tracker: Address, key: str, *, timeout: float = TIMEOUT_S) -> Connection:
        """Ask a tracker for a free device with a key.

        Raises
        ------
        DeviceError
            No device with the key is free, or one of the two cannot be reached.
        """
        known, _ = devices(tracker, timeout=timeout)
        if key not in {device.key for device in known}:
            there = (
                f"it knows {', '.join(sorted({repr(device.key) for device in known}))}" if known else "it knows none"
            )
            raise DeviceError(f"the tracker at {tracker} knows no device '{key}': {there}")
        answer = _ask(tracker, [base.TrackerCode.REQUEST, key, "", 1], timeout, f": no device '{key}' became free")
        with _understanding(tracker):
            host, port, secret = answer
            address = Address(str(host), int(port))
        return cls(address, key=secret, timeout=timeout)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Do something that talks to the device.

        Raises
        ------
        DeviceError
            The device has gone, or did not answer in time.
        RuntimeError
            What was called there failed.
        """
        if self._lost is not None:
            raise DeviceError(str(self._lost))
        with self._talking("does not answer any more"):
            return function(*arguments)

    def function(self, name: str) -> Callable[..., Any]:
        """A global function of the device."""
        return self.call(self._session.get_function, name)

    def upload(self, data: bytes, name: str) -> None:
        """Write a file into the session's folder on the device."""
        self.call(self._session.upload, bytearray(data), name)

    def load(self, name: str) -> Any:
        """Load a library that was uploaded."""
        return self.call(self._session.load_module, name)

    def close(self) -> None:
        """End the session, so that the device is free for others."""
        if self._lost is None:
            self._lost = DeviceError(f"the connection with {self.name} is closed")
            self._cut()

    @contextlib.contextmanager
    def _talking(self, otherwise: str) -> Iterator[None]:
        """Cut the connection if what is done takes too long; make one error of all that a lost connection raises."""
        late = threading.Event()

        def cut() -> None:
            late.set()
            self._cut()

        timer = threading.Timer(self.timeout, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except tvm.error.RPCError:
            raise  # the function failed on the device, which is well
        except (RuntimeError, OSError) as error:
            why = f"no answer within {self.timeout:g} s" if late.is_set() else reason(error)
            self._lost = DeviceError(f"the device at {self.name} {otherwise} ({why})")
            self._cut()
            raise self._lost from error
        finally:
            timer.cancel()

    def _cut(self) -> None:
        """Shut the sockets to the device: TVM waits in one for ever, and tells nobody which it is."""
        for each in psutil.Process().net_connections("tcp"):
            if each.raddr == getattr(self, "_peer", None):
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(each.fd)) as twin:
                    twin.shutdown(socket.SHUT_RDWR)


def connected(open_connection: Callable[[], T], within: float, pause: float = 1.0) -> T:
    """Connect to a device that may be away for a while: try again for ``within`` seconds.

    Raises
    ------
    DeviceError
        That of the last try.
    """
    end = time.monotonic() + within
    while True:
        try:
            return open_connection()
        except DeviceError:
            if time.monotonic() + pause > end:
                raise
            time.sleep(pause)


def _resolved(address: Address) -> Address:
    """The numeric address; of several an IPv4 one, which servers listen at."""
    found = sorted(socket.getaddrinfo(*address, type=socket.SOCK_STREAM), key=lambda each: each[0] != socket.AF_INET)
    return Address(str(found[0][4][0]), address.port)


def _ask(tracker: Address, question: list[Any], timeout: float, otherwise: str = "") -> Any:
    """A tracker's answer. ``otherwise`` says what it means if there is none in time."""
    try:
        link = socket.create_connection(tracker, timeout)
        with link, _understanding(tracker):
            link.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            if struct.unpack("<i", base.recvall(link, 4))[0] != base.RPC_TRACKER_MAGIC:
                raise ValueError("another greeting")
            base.sendjson(link, question)
            code, value = base.recvjson(link)
            if code != base.TrackerCode.SUCCESS:
                raise ValueError(f"code {code}")
            return value
    except TimeoutError as error:
        raise DeviceError(f"the tracker at {tracker} gave no answer within {timeout:g} s{otherwise}") from error
    except OSError as error:
        raise DeviceError(f"the tracker at {tracker} cannot be reached ({reason(error)})") from error


@contextlib.contextmanager
def _understanding(tracker: Address) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise DeviceError(f"what answers at {tracker} is no tracker of TVM's RPC ({reason(error)})") from error
