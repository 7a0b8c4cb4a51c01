"""Back end for OpenCL, by ``pyopencl``."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import DeviceError
from .backend import LESS_MEMORY, MIB, Backend, Command, CopyBytes, LostError, Region

MOST_UPLOADING = 64 * MIB
"""Most bytes on their way to a device, which this process keeps until they are there."""


class OpenClBackend(Backend):
    """The device of a number among all that OpenCL knows here.

    Raises
    ------
    DeviceError
        ``pyopencl`` is not installed, or there is no such device.
    """

    def __init__(self, number: int) -> None:
        try:
            import pyopencl as cl
        except ImportError as error:
            raise DeviceError(f"OpenCL needs pyopencl: pip install 'pock-tvm[opencl]' ({error})") from error
        self._cl = cl
        try:
            devices = [device for platform in cl.get_platforms() for device in platform.get_devices()]
        except cl.Error:
            devices = []  # no driver
        if number >= len(devices):
            known = ", ".join(f"opencl:{at} {device.name}" for at, device in enumerate(devices))
            raise DeviceError(
                f"there is no device opencl:{number}: "
                + (f"there are {known}" if known else "no driver is installed (Debian: pocl-opencl-icd runs on CPUs)")
            )
        self._device = devices[number]
        self.name = self._device.name
        self.alignment = max(self._device.mem_base_addr_align // 8, 4)
        try:
            self._context = cl.Context([self._device])
            self._queue = cl.CommandQueue(self._context)
        except cl.Error as error:
            raise DeviceError(f"{self.name} cannot be opened: {error}") from error
        # Division within half of the last bit, as on CPUs, where the device can: 2.5 of it otherwise.
        exact = self._device.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT
        self._options = ["-cl-fp32-correctly-rounded-divide-sqrt"] if exact else []
        self._uploads: list[Any] = []
        """Copies to the device that may not be done: each keeps its source, and would be waited for if it were
        dropped."""
        self._uploading = 0
        """Bytes of their sources."""
        self._texts: dict[str, str] = {}
        self._programs: dict[str, Any] = {}

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Word what OpenCL reports."""
        try:
            yield
        except self._cl.Error as error:
            raise LostError(self.name, str(error)) from error

    def free_bytes(self) -> int:
        return self._device.global_mem_size

    def largest_buffer(self) -> int:
        return self._device.max_mem_alloc_size

    def allocate(self, size: int) -> Any:
        self.refuse_buffer(size)
        with self._speaking():
            try:
                buffer = self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, size)
                self._cl.enqueue_fill_buffer(self._queue, buffer, np.zeros(1, "uint8"), 0, size)
            except self._cl.MemoryError as error:
                raise DeviceError(
                    f"{self.name} has too little memory: {size / MIB:.1f} MiB more are needed, and it has "
                    f"{self.free_bytes() / MIB:.1f} MiB in all. {LESS_MEMORY}"
                ) from error
        return buffer

    def write(self, region: Region, values: np.ndarray) -> None:
        with self._speaking():
            copy = self._cl.enqueue_copy(
                self._queue, region.buffer, values, dst_offset=region.offset, is_blocking=False
            )
        self._uploads.append(copy)
        self._uploading += values.nbytes
        if self._uploading > MOST_UPLOADING:  # all weights at once would be in memory twice
            self.finish()

    def read(self, region: Region) -> np.ndarray:
        values = np.empty(region.size, "uint8")
        if region.size:
            with self._speaking():
                self._cl.enqueue_copy(self._queue, values, region.buffer, src_offset=region.offset, is_blocking=True)
            self._uploaded()  # they came before
        return values

    def load(self, kernel: str, text: bytes) -> None:
        self._texts[kernel] = text.decode()
        self._programs.pop(kernel, None)

    def _program(self, kernel: str) -> Any:
        """The built text of a kernel. All texts that were loaded by then are built together: it takes far less time."""
        if kernel not in self._programs:
            try:
                program = self._cl.Program(self._context, "\n".join(self._texts.values())).build(self._options)
            except self._cl.RuntimeError as error:
                said = " ".join(str(error).split())[:300]
                raise DeviceError(f"the driver of {self.name} does not take this program's kernels: {said}") from error
            self._programs |= dict.fromkeys(self._texts, program)
            self._texts.clear()
        return self._programs[kernel]

    def record(self, commands: Sequence[Command]) -> Any:
        views: dict[tuple[int, int, int], Any] = {}
        with self._speaking():
            return [self._recorded(command, views) for command in commands]

    def _recorded(self, command: Command, views: dict[tuple[int, int, int], Any]) -> Any:
        if isinstance(command, CopyBytes):
            return command
        function = self._cl.Kernel(self._program(command.kernel), command.symbol)
        function.set_args(*(self._view(region, views) for region in command.arguments))
        total = tuple(grid * block for grid, block in zip(command.grid, command.block, strict=True))
        return function, total, command.block

    def _view(self, region: Region, views: dict[tuple[int, int, int], Any]) -> Any:
        """A part of a buffer as an argument. One part is one object, wherever it is passed."""
        if region.offset == 0 and region.size == region.buffer.size:
            return region.buffer
        key = (region.buffer.int_ptr, region.offset, region.size)
        if key not in views:
            views[key] = region.buffer.get_sub_region(region.offset, region.size)
        return views[key]

    def submit(self, recorded: Any) -> None:
        with self._speaking():
            for each in recorded:
                self._start(each, self._queue)
            self._queue.flush()

    def seconds(self, recorded: Any) -> float:
        self.finish()
        with self._speaking():
            events = [self._start(each, self._timed) for each in recorded]
            events[-1].wait()
            return 1e-9 * (events[-1].profile.end - events[0].profile.start)

    @functools.cached_property
    def _timed(self) -> Any:
        """A queue whose commands are timed by the device."""
        return self._cl.CommandQueue(self._context, properties=self._cl.command_queue_properties.PROFILING_ENABLE)

    def _start(self, each: Any, queue: Any) -> Any:
        """Start a command as :meth:`record` made it, and return its event."""
        if isinstance(each, CopyBytes):
            to, source = each.to, each.source
            return self._cl.enqueue_copy(
                queue, to.buffer, source.buffer,
                byte_count=to.size, dst_offset=to.offset, src_offset=source.offset,
            )  # fmt: skip
        function, total, block = each
        return self._cl.enqueue_nd_range_kernel(queue, function, total, block)

    def finish(self) -> None:
        with self._speaking():
            self._queue.finish()
        self._uploaded()

    def _uploaded(self) -> None:
        """Give back the sources of copies to the device, which are done."""
        self._uploads.clear()
        self._uploading = 0
