"""Options that name a device, and the connections that they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import OptionError

if TYPE_CHECKING:
    from ..deploying.connection import Connection

ADDRESS = "HOST:PORT"
TRACKER = typer.Option(metavar=ADDRESS, help="A tracker of TVM's RPC (python -m tvm.exec.rpc_tracker)")
RPC = Annotated[str | None, typer.Option(metavar=ADDRESS, help="A device's RPC server")]
ANY_TRACKER = Annotated[str | None, TRACKER]
KEY = Annotated[str, typer.Option(help="The device's key: which of the tracker's to take")]
TIMEOUT = Annotated[float, typer.Option(help="Seconds that one step, or any other call, may take")]
TIMEOUT_S = 60.0


def connector(rpc: str | None, tracker: str | None, key: str, timeout: float) -> Callable[[], Connection]:
    """What connects to the device that the options name.

    Raises
    ------
    OptionError
        They name none, or two; or an address is of another form.
    """
    from ..deploying.connection import Address, Connection

    if (rpc is None) == (tracker is None):
        raise OptionError("a device is named by --rpc HOST:PORT, or by --tracker HOST:PORT and --key: give one of them")
    if tracker is not None and not key:
        raise OptionError(f"--tracker needs --key: 'pock devices --tracker {tracker}' lists those that it knows")
    address = Address.parse(rpc or tracker or "")
    if tracker is not None:
        return lambda: Connection.through(address, key, timeout=timeout)
    return lambda: Connection(address, key=key, timeout=timeout)
