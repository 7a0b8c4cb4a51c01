"""Back end for OpenCL, by ``pyopencl``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DeviceError
from .backend import Backend, Command, CopyBytes, Region


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
        self.name = devices[number].name
        self.alignment = max(devices[number].mem_base_addr_align // 8, 4)
        self._context = cl.Context([devices[number]])
        self._queue = cl.CommandQueue(self._context)
        # Division within half of the last bit, as on CPUs, where the device can: 2.5 of it otherwise.
        exact = devices[number].single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT
        self._options = ["-cl-fp32-correctly-rounded-divide-sqrt"] if exact else []
        self._texts: dict[str, str] = {}
        self._programs: dict[str, Any] = {}

    def allocate(self, size: int) -> Any:
        buffer = self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, size)
        self._cl.enqueue_fill_buffer(self._queue, buffer, np.zeros(1, "uint8"), 0, size)
        return buffer

    def write(self, region: Region, values: np.ndarray) -> None:
        self._cl.enqueue_copy(self._queue, region.buffer, values, dst_offset=region.offset, is_blocking=True)

    def read(self, region: Region) -> np.ndarray:
        values = np.empty(region.size, "uint8")
        if region.size:
            self._cl.enqueue_copy(self._queue, values, region.buffer, src_offset=region.offset, is_blocking=True)
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
        for each in recorded:
            if isinstance(each, CopyBytes):
                to, source = each.to, each.source
                self._cl.enqueue_copy(
                    self._queue, to.buffer, source.buffer,
                    byte_count=to.size, dst_offset=to.offset, src_offset=source.offset,
                )  # fmt: skip
            else:
                function, total, block = each
                self._cl.enqueue_nd_range_kernel(self._queue, function, total, block)
        self._queue.flush()

    def finish(self) -> None:
        self._queue.finish()
