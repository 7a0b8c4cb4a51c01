"""Back end for CUDA, by the driver alone (``cuda-bindings``): a long list of commands is submitted as one graph."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import DeviceError
from .backend import LESS_MEMORY, MIB, Backend, Command, CopyBytes, Launch, LostError, Region

STAGES, STAGE_BYTES = 16, MIB
"""Pieces of page-locked memory, which inputs are sent from while the next ones are put there."""
GRAPH_COMMANDS = 8
"""Fewest commands that become a graph: to make one takes longer than to start a few."""
SMALL_BYTES = 4096
"""Largest buffer that is kept for the next one of its size: the driver waits for the GPU when it takes memory back."""
TEGRA = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0)}
"""Compute capabilities of Jetson's GPUs: they run machine code of their own alone."""


class CudaBackend(Backend):
    """The GPU of a number, in the context that other libraries of the process use too.

    Raises
    ------
    DeviceError
        ``cuda-bindings`` or NVIDIA's driver is not installed, or there is no such GPU.
    """

    alignment = 16  # a thread loads 128 bits at once

    def __init__(self, number: int) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise DeviceError(f"CUDA needs cuda-bindings: pip install 'pock-tvm[cuda]' ({error})") from error
        self._driver = driver
        self.name = f"cuda:{number}"
        try:
            self._call("cuInit", 0)
            count = self._call("cuDeviceGetCount")
        except (DeviceError, RuntimeError) as error:  # the bindings' own error if there is no driver
            raise DeviceError(f"there is no device cuda:{number}: NVIDIA's driver is missing ({error})") from error
        if number >= count:
            raise DeviceError(f"there is no device cuda:{number}: there are {count}, from cuda:0")
        device = self._call("cuDeviceGet", number)
        text = self._call("cuDeviceGetName", 128, device).split(b"\0")[0].decode()
        self.name = f"cuda:{number} ({text})"
        kinds = driver.CUdevice_attribute
        major, minor = (
            self._call("cuDeviceGetAttribute", getattr(kinds, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"), device)
            for part in ("MAJOR", "MINOR")
        )
        self.capability: tuple[int, int] = (major, minor)
        """Compute capability, such as (8, 7)."""
        self._context = self._call("cuDevicePrimaryCtxRetain", device)
        with self._here():
            self._stream = self._call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
            self._stages = itertools.cycle([_Stage(self) for _ in range(STAGES)])
        self._binaries: dict[str, bytes] = {}
        self._modules: dict[str, Any] = {}
        self._spare: dict[int, list[int]] = {}
        """Addresses of small buffers that nobody uses any more, by size. What is started uses them in order."""

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the driver, and return what it gives besides its status."""
        status, *values = getattr(self._driver, function)(*arguments)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise CudaError(self.name, status.name)
        return values[0] if len(values) == 1 else tuple(values)

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        """Make this GPU the one that calls of this thread are for, and then again the one before."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent()

    def lacks(self, instructions: Sequence[str]) -> str:
        for architecture in instructions:
            kind, _, number = architecture.rstrip("af").partition("_")  # sm_90a
            built = divmod(int(number), 10)
            if not runs(built, self.capability, is_ptx=kind == "compute"):
                needed, here = (".".join(map(str, each)) for each in (built, self.capability))
                target = {"kind": "cuda", "arch": f"sm_{here.replace('.', '')}"}
                return (
                    f"it needs compute capability {needed}, and has {here}: compile for target '{json.dumps(target)}'"
                )
        return ""

    def free_bytes(self) -> int | None:
        with self._here():
            return self._call("cuMemGetInfo")[0]

    def allocate(self, size: int) -> Any:
        with self._here():
            try:
                buffer = _Buffer(self, size)
            except CudaError as error:
                if error.status != "CUDA_ERROR_OUT_OF_MEMORY":
                    raise
                free, whole = (each / MIB for each in self._call("cuMemGetInfo"))
                raise DeviceError(
                    f"{self.name} has too little memory: {size / MIB:.1f} MiB more are needed, and {free:.1f} of its "
                    f"{whole:.1f} MiB are free. {LESS_MEMORY}"
                ) from error
            self._call("cuMemsetD8Async", buffer.address, 0, size, self._stream)
            return buffer

    def write(self, region: Region, values: np.ndarray) -> None:
        with self._here():
            for start in range(0, region.size, STAGE_BYTES):
                piece = values[start : start + STAGE_BYTES]
                with next(self._stages).filled(piece) as source:
                    self._call("cuMemcpyHtoDAsync", _address(region) + start, source, piece.size, self._stream)

    def read(self, region: Region) -> np.ndarray:
        with self._here():
            values = np.empty(region.size, "uint8")
            if region.size:
                self._call("cuMemcpyDtoHAsync", values.ctypes.data, _address(region), region.size, self._stream)
            self._call("cuStreamSynchronize", self._stream)
            return values

    def load(self, kernel: str, text: bytes) -> None:
        self._binaries[kernel] = text

    def _function(self, kernel: str, symbol: str) -> Any:
        """A device function. Its kernel is loaded when it is first recorded."""
        if kernel not in self._modules:
            image = np.frombuffer(self._binaries[kernel], "uint8")
            self._modules[kernel] = self._call("cuModuleLoadData", image.ctypes.data)
            weakref.finalize(self, self._driver.cuModuleUnload, self._modules[kernel]).atexit = False
        return self._call("cuModuleGetFunction", self._modules[kernel], symbol.encode())

    def record(self, commands: Sequence[Command]) -> Any:
        with self._here():
            return _Recorded(self, commands)

    def submit(self, recorded: Any) -> None:
        with self._here():
            recorded.submit()

    def seconds(self, recorded: Any) -> float:
        with self._here():
            events = [self._call("cuEventCreate", 0) for _ in range(2)]
            try:
                self._call("cuEventRecord", events[0], self._stream)
                recorded.submit()
                self._call("cuEventRecord", events[1], self._stream)
                self._call("cuStreamSynchronize", self._stream)
                return 1e-3 * self._call("cuEventElapsedTime", *events)
            finally:
                for event in events:
                    self._driver.cuEventDestroy(event)

    def finish(self) -> None:
        with self._here():
            self._call("cuStreamSynchronize", self._stream)


class CudaError(LostError):
    """The driver refuses something; ``status`` is its name of the error."""

    def __init__(self, device: str, status: str) -> None:
        super().__init__(device, status, "in a new process")
        self.status = status


def runs(built: tuple[int, int], here: tuple[int, int], *, is_ptx: bool) -> bool:
    """Whether a GPU of compute capability ``here`` runs what was compiled for ``built``.

    PTX runs on all later ones, machine code on later ones of the same generation, but for those of Jetsons.
    """
    if is_ptx or built == here:
        return here >= built
    return built[0] == here[0] and built[1] < here[1] and not TEGRA & {built, here}


class _Buffer:
    """Memory of the GPU, given back when it is dropped."""

    def __init__(self, backend: CudaBackend, size: int) -> None:
        self.size = size
        spare = backend._spare.get(size)
        self.address = spare.pop() if spare else int(backend._call("cuMemAlloc", size))
        if size <= SMALL_BYTES:
            kept = backend._spare.setdefault(size, [])
            weakref.finalize(self, kept.append, self.address).atexit = False
        else:  # it waits for what was submitted
            weakref.finalize(self, _free, backend._driver, backend._context, self.address).atexit = False


def _free(driver: Any, context: Any, address: int) -> None:
    driver.cuCtxPushCurrent(context)
    driver.cuMemFree(address)
    driver.cuCtxPopCurrent()


def _address(region: Region) -> int:
    return region.buffer.address + region.offset


class _Stage:
    """A piece of page-locked memory, and the event behind its last transfer."""

    def __init__(self, backend: CudaBackend) -> None:
        driver = backend._driver
        self._call, self._stream = backend._call, backend._stream
        self._event = self._call("cuEventCreate", driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self._start = int(self._call("cuMemHostAlloc", STAGE_BYTES, 0))
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * STAGE_BYTES).from_address(self._start))
        weakref.finalize(backend, driver.cuMemFreeHost, self._start).atexit = False

    @contextlib.contextmanager
    def filled(self, values: np.ndarray) -> Iterator[int]:
        """Put values here once the last transfer is done, and give their address for the next one."""
        self._call("cuEventSynchronize", self._event)
        self._bytes[: values.size] = values
        yield self._start
        self._call("cuEventRecord", self._event, self._stream)


class _Call(NamedTuple):
    """Arguments of the driver's function that starts a command."""

    function: str
    arguments: tuple[Any, ...]
    held: tuple[np.ndarray, ...] = ()
    """What the arguments point to."""


class _Recorded:
    """Commands that are submitted as a graph, or as they are if they are few."""

    def __init__(self, backend: CudaBackend, commands: Sequence[Command]) -> None:
        self._backend = backend
        self._commands = commands  # their buffers stay
        self._calls = [self._call(command) for command in commands]
        self._graph = self._captured() if len(commands) >= GRAPH_COMMANDS else None

    def _call(self, command: Command) -> _Call:
        stream = self._backend._stream
        if isinstance(command, CopyBytes):
            to, source = map(_address, (command.to, command.source))
            return _Call("cuMemcpyDtoDAsync", (to, source, command.to.size, stream))
        return self._launch(command)

    def _launch(self, command: Launch) -> _Call:
        function = self._backend._function(command.kernel, command.symbol)
        values = np.array([_address(region) for region in command.arguments], "uint64")
        places = values.ctypes.data + values.itemsize * np.arange(values.size, dtype="uint64")
        arguments = (function, *command.grid, *command.block, 0, self._backend._stream, places.ctypes.data, 0)
        return _Call("cuLaunchKernel", arguments, (values, places))

    def _captured(self) -> Any:
        """What the stream would be given, as a graph."""
        call, driver, stream = self._backend._call, self._backend._driver, self._backend._stream
        # Relaxed: a buffer may be dropped, and its memory given back, at any moment.
        call("cuStreamBeginCapture", stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            self._start()
        finally:
            _, graph = driver.cuStreamEndCapture(stream)
        found = call("cuGraphInstantiate", graph, 0)
        call("cuGraphDestroy", graph)
        weakref.finalize(self, driver.cuGraphExecDestroy, found).atexit = False
        return found

    def _start(self) -> None:
        for each in self._calls:
            self._backend._call(each.function, *each.arguments)

    def submit(self) -> None:
        """Start the commands behind whatever was started before."""
        if self._graph is None:
            self._start()
        else:
            self._backend._call("cuGraphLaunch", self._graph, self._backend._stream)
