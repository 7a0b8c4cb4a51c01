"""Sessions with TVM's RPC servers, by address or through a tracker, whose calls end in time."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import psutil
import tvm
import tvm_ffi
from tvm import rpc
from tvm.rpc import base

from ..device.arguments import number, require
from ..device.reading import reason
from ..errors import DeviceError, OptionError

T = TypeVar("T")
TIMEOUT_S = 60.0
"""Default of the time that a call may take: more than any step, less than a person's patience."""
CUT_AGAIN_S = 1.0
"""Pause between two attempts to cut a connection that is being made."""
PAUSE_S = 1.0
"""Seconds between two tries to reach a device that is away."""
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

    A call that takes longer than ``timeout`` seconds, one whose device has gone, and one that is interrupted end the
    session: what comes late would be taken for the answer to the next call. All later calls raise DeviceError.
    """

    def __init__(self, address: Address, *, key: str = "", timeout: float = TIMEOUT_S) -> None:
        require("timeout", timeout, SECONDS, OptionError)
        self.name, self.timeout = str(address), timeout
        self._lost: DeviceError | None = None
        self._link = _Link()
        self._functions: dict[str, Callable[..., Any]] = {}
        self._dropped: list[Any] = []
        self._numbers = itertools.count()
        with self._talking("cannot be reached"):
            peer = _resolved(address)
        silent = ": it may serve another client, or have stopped serving as a session broke off"
        with self._talking("cannot be reached, or is no RPC server", silent), self._explaining(key):
            self._session = self._link.made(peer, lambda: rpc.connect(*peer, key), timeout)
        # Else TVM asks the device to give back what is left, and waits for one that hangs.
        weakref.finalize(self, self._link.cut)
        self.memory = self._session.cpu()
        """The device's memory, for ``tvm.runtime.empty``."""

    @contextlib.contextmanager
    def _explaining(self, key: str) -> Iterator[None]:
        """Say in words why TVM made no session."""
        try:
            yield
        except RuntimeError as error:
            said = str(error)
            if "matches key" in said:
                other = f"another key than '{key}'" if key else "a key"
                raise DeviceError(f"the device at {self.name} was started with {other}: key= names it") from error
            refused = "sock.Connect" in said
            raise OSError("nothing accepts connections there" if refused else "it closed the connection") from error

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
        answer = _ask(tracker, [base.TrackerCode.REQUEST, key, "", 1], timeout, f"had no free device '{key}'")
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
        with self._talking("does not answer any more", ": a slow device or network needs a longer timeout"):
            self._free_dropped()
            return function(*arguments)

    def owned(self, owner: object, thing: T) -> T:
        """Give back a thing of the device's (a tensor, a function, a library) with the next call after its owner has
        gone.

        Python alone would give it back at once: TVM then asks the device, and waits for the answer with the interpreter
        locked, so that no deadline ends it.
        """
        weakref.finalize(owner, self._dropped.append, thing)
        return thing

    def _free_dropped(self) -> None:
        if self._dropped:
            dropped = tvm_ffi.List([self._dropped.pop() for _ in range(len(self._dropped))])  # more may come meanwhile
            dropped.clear()  # a call of TVM's, with the interpreter unlocked

    def function(self, name: str) -> Callable[..., Any]:
        """A global function of the device."""
        if name not in self._functions:
            self._functions[name] = self.call(self._session.get_function, name)
        return self._functions[name]

    def load(self, library: bytes) -> Any:
        """Upload a shared library into the session's folder on the device, and load it."""
        name = f"library-{next(self._numbers)}.so"  # to write over one that runs would change its code
        self.call(self._session.upload, bytearray(library), name)
        return self.call(self._session.load_module, name)

    def close(self) -> None:
        """End the session, so that the device is free for others."""
        if self._lost is None:
            self._lost = DeviceError(f"the connection with {self.name} is closed")
            self._link.cut()

    @contextlib.contextmanager
    def _talking(self, otherwise: str, silent: str = "") -> Iterator[None]:
        """Cut the connection if what is done takes too long; make one error of all that a lost connection raises.

        ``silent`` says what it may mean that nothing came in time.
        """
        over, late = threading.Event(), threading.Event()

        def watch() -> None:
            pause = self.timeout
            while not over.wait(pause):  # more than once: the socket may not be there yet
                late.set()
                self._link.cut()
                pause = CUT_AGAIN_S

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
            if late.is_set():  # what was cut may be one that tells nobody
                raise TimeoutError
        except tvm.error.RPCError:
            raise  # the function failed on the device, which is well
        except (RuntimeError, OSError) as error:
            said = reason(error).rpartition("Error:")[2]  # without the names of TVM's functions
            why = f"no answer within {self.timeout:g} s{silent}" if late.is_set() else said
            self._lost = DeviceError(f"the device at {self.name} {otherwise} ({why})")
            self._link.cut()
            raise self._lost from error
        except KeyboardInterrupt:
            self._lost = DeviceError(f"a call to the device at {self.name} was interrupted")
            self._link.cut()
            raise
        finally:
            over.set()


class _Link:
    """The socket of a session. TVM waits in it for ever, and tells nobody which it is."""

    def __init__(self) -> None:
        self._peer: Address | None = None
        self._others: set[Any] = set()
        self._own: set[Any] = set()

    def made(self, peer: Address, connect: Callable[[], T], timeout: float) -> T:
        """Connect. Sockets are this session's that were not there before: others wait meanwhile.

        Raises
        ------
        TimeoutError
            Another session with the same server has not begun in time.
        """
        if not (door := _door(peer)).acquire(timeout=timeout):
            raise TimeoutError("another connection to it has not begun yet")
        try:
            self._peer, self._others = peer, set(_sockets(peer))
            session = connect()
            self._own = set(_sockets(peer)) - self._others
            return session
        finally:
            door.release()

    def cut(self) -> None:
        """Shut the socket: whoever waits in it gets an error."""
        if self._peer is None:
            return
        for address, descriptor in _sockets(self._peer).items():
            if address in self._own if self._own else address not in self._others:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as twin:
                    twin.shutdown(socket.SHUT_RDWR)
        if self._own:
            self._peer = None  # another session may have the same port later


@functools.cache
def _door(_peer: Address) -> threading.Lock:
    """A lock for each server."""
    return threading.Lock()


def _sockets(peer: Address) -> dict[Any, int]:
    """Descriptors of the sockets of this process that lead to a peer, by their local addresses."""
    return {each.laddr: each.fd for each in psutil.Process().net_connections("tcp") if each.raddr == peer}


def connected(open_connection: Callable[[], T], within: float) -> T:
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
            if time.monotonic() + PAUSE_S > end:
                raise
            time.sleep(PAUSE_S)


def _resolved(address: Address) -> Address:
    """The numeric address; of several an IPv4 one, which servers listen at."""
    found = sorted(socket.getaddrinfo(*address, type=socket.SOCK_STREAM), key=lambda each: each[0] != socket.AF_INET)
    return Address(str(found[0][4][0]), address.port)


def _ask(tracker: Address, question: list[Any], timeout: float, otherwise: str = "gave no answer") -> Any:
    """A tracker's answer. ``otherwise`` says what it did if there is none in time."""
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
        raise DeviceError(f"the tracker at {tracker} {otherwise} within {timeout:g} s") from error
    except OSError as error:
        raise DeviceError(f"the tracker at {tracker} cannot be reached, or is none ({reason(error)})") from error


@contextlib.contextmanager
def _understanding(tracker: Address) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise DeviceError(f"what answers at {tracker} is no tracker of TVM's RPC ({reason(error)})") from error
