"""Where a device is found: its RPC server, or a tracker that lends devices of a key."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DeviceError, PockWarning
from .connection import TIMEOUT_S, Address, Connection, connected, devices


@dataclass(frozen=True)
class Endpoint:
    """A device's RPC server, or with ``is_tracker`` a tracker and the key of the devices that it lends."""

    address: Address
    key: str = ""
    is_tracker: bool = False
    timeout: float = TIMEOUT_S
    """Seconds that a call may take."""

    def __str__(self) -> str:
        return f"'{self.key}' of the tracker at {self.address}" if self.is_tracker else f"the device at {self.address}"

    def connect(self) -> Connection:
        """Begin a session. Errors: as those of :class:`Connection`."""
        if self.is_tracker:
            return Connection.through(self.address, self.key, timeout=self.timeout)
        return Connection(self.address, key=self.key, timeout=self.timeout)


def first_of(endpoints: Sequence[Endpoint]) -> Connection:
    """Begin a session with the first device that is there. If there is none, wait for one for its timeout.

    Raises
    ------
    DeviceError
        None came.

    Warns
    -----
    PockWarning
        None is there yet: it says so before it waits.
    """

    def connect() -> Connection:
        for endpoint in endpoints[:-1]:
            with contextlib.suppress(DeviceError):
                return endpoint.connect()
        return endpoints[-1].connect()

    try:
        return connect()
    except DeviceError as error:
        timeout = endpoints[-1].timeout
        warnings.warn(f"{error}: waiting for a device for {timeout:g} s", PockWarning, stacklevel=2)
    return connected(connect, timeout)


def all_of(tracker: Address, key: str, *, timeout: float = TIMEOUT_S) -> list[Endpoint]:
    """Return an endpoint for each device of a key that a tracker knows now; one if there is none yet.

    Raises
    ------
    DeviceError
        The tracker cannot be reached, or is none.
    """
    known, _ = devices(tracker, timeout=timeout)
    return [Endpoint(tracker, key, True, timeout)] * max(1, sum(device.key == key for device in known))
