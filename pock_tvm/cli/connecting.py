"""Options that name devices, and the endpoints that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import OptionError

if TYPE_CHECKING:
    from ..deploying.endpoint import Endpoint

ADDRESS = "HOST:PORT"
TRACKER = typer.Option(metavar=ADDRESS, help="A tracker of TVM's RPC (python -m tvm.exec.rpc_tracker)")
RPC = Annotated[str | None, typer.Option(metavar=ADDRESS, help="A device's RPC server")]
SEVERAL_RPC = Annotated[
    list[str] | None, typer.Option("--rpc", metavar=ADDRESS, help="A device's RPC server; several work in parallel")
]
ANY_TRACKER = Annotated[str | None, TRACKER]
KEY = Annotated[str, typer.Option(help="The device's key: which of the tracker's to take")]
TIMEOUT = Annotated[float, typer.Option(help="Seconds that one step, or any other call, may take")]
TIMEOUT_S = 60.0


def endpoint(rpc: str | None, tracker: str | None, key: str, timeout: float) -> Endpoint:
    """Return where the device is that the options name.

    Raises
    ------
    OptionError
        They name none, or two; or an address is of another form.
    """
    from ..deploying.connection import Address
    from ..deploying.endpoint import Endpoint

    if (rpc is None) == (tracker is None):
        raise OptionError("a device is named by --rpc HOST:PORT, or by --tracker HOST:PORT and --key: give one of them")
    if tracker is not None and not key:
        raise OptionError(f"--tracker needs --key: 'pock devices --tracker {tracker}' lists those that it knows")
    return Endpoint(Address.parse(rpc or tracker or ""), key, tracker is not None, timeout)


def endpoints(rpc: Sequence[str], tracker: str | None, key: str, timeout: float) -> list[Endpoint]:
    """Return where the devices are that the options name: all of a tracker's key; none without options.

    Errors: as :func:`endpoint`; DeviceError, if the tracker cannot be reached.
    """
    from ..deploying.endpoint import all_of

    if not rpc and tracker is None:
        return []
    servers: list[str | None] = [*dict.fromkeys(rpc)] or [None]
    found = [endpoint(each, tracker, key, timeout) for each in servers]
    return all_of(found[0].address, key, timeout=timeout) if found[0].is_tracker else found
