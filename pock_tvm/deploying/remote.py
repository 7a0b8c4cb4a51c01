"""A trainer whose program runs on another machine, over TVM's RPC: nothing of this project is needed there."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import tvm
from numpy.typing import ArrayLike

from ..device.gpu.devices import refuse_gpu
from ..device.machine import machine_triple
from ..device.memory import ALIGNMENT, Memory
from ..device.program import Program
from ..device.runtime import FASTEST_CORES, HostLibrary
from ..device.trainer import Trainer
from ..errors import DeviceError, PockError, ProgramError
from .connection import Connection

MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""Machines by their number in the header of an ELF file."""


class RemoteTrainer(Trainer):
    """A :class:`~pock_tvm.Trainer` whose steps run on a device: its methods are the same.

    The program's library is uploaded. Weights, state and arena lie in the device's memory; inputs go there with each
    step, and the loss comes back. ``save`` fetches the state and writes it here, ``restore`` sends one there.

    Parameters
    ----------
    program : Program or path
        Compiled for the device's kind of machine.
    connection : Connection
        A session with TVM's RPC server on the device.
    threads : int, optional
        How many cores the device uses, up to what ``TVM_NUM_THREADS`` says there; by default its own choice.

    Raises
    ------
    ProgramError
        The program is damaged, or for another kind of machine.
    DeviceError
        The device has gone, or did not answer in time. So does every method; the state is then what was last saved.
    """

    def __init__(self, program: Program | str, connection: Connection, *, threads: int | None = None) -> None:
        self.connection = connection
        super().__init__(program, threads=threads)

    def _loaded(self, program: Program, threads: int | None) -> tuple[HostLibrary, int, Memory]:
        refuse_gpu(program.manifest["target"], "over RPC")
        triple, device = program.manifest["target"]["triple"], _triple_of(self.connection)
        if device is not None and machine_triple(triple) != device:
            raise ProgramError(
                f"this program was compiled for {triple}, and the device at {self.connection.name} is a {device}: "
                "compile it for that machine (--target)"
            )
        if program.library.startswith(b"PK"):
            raise ProgramError(
                "this program holds objects, and a remote device loads only shared libraries: compile it where a "
                "C compiler is (Debian: gcc)"
            )
        try:
            module = self.connection.load(program.library)
        except RuntimeError as error:
            said = " ".join(str(error).split())[-200:]
            raise ProgramError(f"the device at {self.connection.name} cannot load this program: {said}") from error
        if threads is not None:
            self.connection.call(self.connection.function("runtime.config_threadpool"), FASTEST_CORES, threads)
        return _RemoteLibrary(module, self.connection), threads or 0, _RemoteMemory(self.connection)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        """Refuse to be copied: the device serves one session."""
        raise PockError("a trainer on a device is not copied: save a checkpoint, and restore it in another trainer")

    def close(self) -> None:
        """End the session with the device; the state that was not saved is lost."""
        self.connection.close()


def _triple_of(connection: Connection) -> str | None:
    """Architecture and system of a device, by the program that serves there; None where it is no Linux."""
    try:
        header = bytes(connection.call(connection.function("tvm.rpc.server.download"), "/proc/self/exe"))[:20]
    except RuntimeError:
        return None  # its loader refuses what is for another machine
    if not header.startswith(b"\x7fELF"):
        return None
    machine = MACHINES.get(int.from_bytes(header[18:20], "little"))
    return machine and f"{machine}-linux"


@dataclass(frozen=True)
class _RemoteArray:
    """Bytes in a device's memory, and what they mean."""

    tensor: Any
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class _RemoteMemory(Memory):
    """The memory of a device."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def allocate(self, shape: Sequence[int], dtype: str) -> _RemoteArray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        call = self._connection.call
        tensor = call(lambda: tvm.runtime.empty((max(size, 1),), "uint8", device=self._connection.memory))
        array = _RemoteArray(tensor, tuple(shape), str(dtype))
        self._connection.owned(array, tensor)
        if self.address(array) % ALIGNMENT:
            raise DeviceError(
                f"the device at {self._connection.name} gives memory at odd addresses: its TVM is another"
            )
        self.write(array, 0)
        return array

    def address(self, array: _RemoteArray) -> int:
        # What TVM has here is a RemoteSpace (src/runtime/rpc/rpc_session.h): the device's address comes first in it.
        return ctypes.c_uint64.from_address(array.tensor.data_ptr()).value

    def read(self, array: _RemoteArray) -> np.ndarray:
        values = self._connection.call(array.tensor.numpy)
        return values[: array.nbytes].view(array.dtype).reshape(array.shape)

    def write(self, array: _RemoteArray, values: ArrayLike) -> None:
        local = np.empty(array.shape, array.dtype)
        np.copyto(local, values, casting="same_kind")
        if local.nbytes:
            self._connection.call(array.tensor.copyfrom, local.reshape(-1).view("uint8"))

    def move(self, to: tuple[_RemoteArray, int], source: tuple[_RemoteArray, int], size: int) -> None:
        (target, at), (origin, start) = to, source
        values = self.read(target)
        values.reshape(-1).view("uint8")[at : at + size] = (
            self.read(origin).reshape(-1).view("uint8")[start : start + size]
        )
        self.write(target, values)


class _RemoteLibrary(HostLibrary):
    """The entry points of a program on a device."""

    def __init__(self, module: Any, connection: Connection) -> None:
        super().__init__(connection.owned(self, module))
        self._connection = connection
        self._clocks: dict[str, Any] = {}

    def table(self, addresses: Sequence[int]) -> _RemoteArray:
        numbers, call = np.array(addresses, "int64"), self._connection.call
        tensor = call(lambda: tvm.runtime.empty(numbers.shape, "int64", device=self._connection.memory))
        table = _RemoteArray(tensor, numbers.shape, "int64")
        self._connection.owned(table, tensor)
        call(tensor.copyfrom, numbers)
        return table

    def numbers(self, table: _RemoteArray) -> list[int]:
        return self._connection.call(table.tensor.numpy).tolist()

    def _find(self, entry: str) -> Any:
        return self._connection.owned(self, self._connection.call(lambda: self._module[entry]))

    def _call(self, function: Any, table: _RemoteArray) -> None:
        self._connection.call(function, table.tensor)

    def seconds(self, entry: str, table: _RemoteArray) -> float:
        """The time of a second call, by the device's clock: TVM makes a first one that does not count."""
        if entry not in self._clocks:
            self._clocks[entry] = self._connection.owned(self, self._connection.call(self._clock, entry))
        with self._failing(entry, table):
            return struct.unpack("@d", self._connection.call(self._clocks[entry], table.tensor))[0]

    def _clock(self, entry: str) -> Any:
        # As Module.time_evaluator does it, which keeps the device's function to itself.
        memory, of_one_call = self._connection.memory, (1, 1, 0, 100, 0, 1, 0, "")
        evaluator = tvm.get_global_func("runtime.RPCTimeEvaluator")
        return evaluator(self._module, entry, memory.dlpack_device_type(), memory.index, *of_one_call)
