"""Back end for Metal, by ``pyobjc-framework-Metal``.

No machine of this project runs it: kernels' texts are checked (``schedules.gpu.text.limits``), and this file was read
against Apple's documentation alone. The way to an Apple GPU that was tried is ``webgpu``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DeviceError
from .backend import LESS_MEMORY, MIB, Backend, Command, CopyBytes, Launch, LostError, Region
from .words import copy_in_words


@dataclass(frozen=True)
class _Dispatch:
    """A launch as it is encoded."""

    pipeline: Any
    launch: Launch


class MetalBackend(Backend):
    """The device of a number among all that Metal knows here.

    Memory is shared between the device and the processor, as all of an Apple chip's is.

    Raises
    ------
    DeviceError
        ``pyobjc-framework-Metal`` is not installed (there is none but for macOS), or there is no such device.
    """

    alignment = 16  # of the widest vectors; Metal itself asks for that of the type

    def __init__(self, number: int) -> None:
        try:
            import Metal
        except ImportError as error:
            raise DeviceError(
                f"Metal needs macOS and pyobjc-framework-Metal: pip install 'pock-tvm[metal]' ({error})"
            ) from error
        self._metal = Metal
        devices = list(Metal.MTLCopyAllDevices())
        if number >= len(devices):
            known = ", ".join(f"metal:{at} {device.name()}" for at, device in enumerate(devices))
            raise DeviceError(
                f"there is no device metal:{number}: " + (f"there are {known}" if known else "there is none")
            )
        self._device = devices[number]
        self.name = str(self._device.name())
        self._queue = self._device.newCommandQueue()
        self._texts: dict[str, str] = {}
        self._libraries: dict[str, Any] = {}
        self._committed: list[Any] = []
        """Command buffers that nobody has waited for yet."""

    def free_bytes(self) -> int:
        return self._device.recommendedMaxWorkingSetSize() - self._device.currentAllocatedSize()

    def largest_buffer(self) -> int:
        return self._device.maxBufferLength()

    def allocate(self, size: int) -> Any:
        self.refuse_buffer(size)
        buffer = self._device.newBufferWithLength_options_(size, self._metal.MTLResourceStorageModeShared)
        if buffer is None:
            raise DeviceError(
                f"{self.name} has too little memory: {size / MIB:.1f} MiB more are needed, and "
                f"{self.free_bytes() / MIB:.1f} are free. {LESS_MEMORY}"
            )
        self._bytes(Region(buffer, 0, size))[:] = 0
        return buffer

    def _bytes(self, region: Region) -> np.ndarray:
        """The bytes of a region, as an array that shares them."""
        contents = np.frombuffer(region.buffer.contents().as_buffer(region.buffer.length()), "uint8")
        return contents[region.offset : region.offset + region.size]

    def write(self, region: Region, values: np.ndarray) -> None:
        self.finish()
        self._bytes(region)[:] = values

    def read(self, region: Region) -> np.ndarray:
        self.finish()
        return self._bytes(region).copy()

    def load(self, kernel: str, text: bytes) -> None:
        self._texts[kernel] = text.decode()
        self._libraries.pop(kernel, None)

    def record(self, commands: Sequence[Command]) -> Any:
        return [
            copy_in_words(command, self.name)
            if isinstance(command, CopyBytes)
            else _Dispatch(self._pipeline(command), command)
            for command in commands
        ]

    def _pipeline(self, launch: Launch) -> Any:
        """The function of a launch, compiled."""
        function = self._library(launch.kernel).newFunctionWithName_(launch.symbol)
        pipeline, error = self._device.newComputePipelineStateWithFunction_error_(function, None)
        self._refuse(launch.kernel, pipeline, error)
        threads, most = int(np.prod(launch.block)), pipeline.maxTotalThreadsPerThreadgroup()
        if threads > most:
            raise DeviceError(
                f"kernel {launch.kernel} has {threads} threads a block, and {self.name} runs {most} of it"
            )
        return pipeline

    def _library(self, kernel: str) -> Any:
        if kernel not in self._libraries:
            options = self._metal.MTLCompileOptions.new()
            options.setFastMathEnabled_(False)  # it may assume that there is no NaN
            library, error = self._device.newLibraryWithSource_options_error_(self._texts[kernel], options, None)
            self._refuse(kernel, library, error)
            self._libraries[kernel] = library
        return self._libraries[kernel]

    def _refuse(self, kernel: str, made: Any, error: Any) -> None:
        if made is None:
            raise DeviceError(f"{self.name} does not take kernel {kernel}: {_words_of(error)}")

    def submit(self, recorded: Any) -> None:
        commands = self._queue.commandBuffer()
        compute = None
        for each in recorded:
            if isinstance(each, CopyBytes):
                if compute is not None:
                    compute.endEncoding()
                    compute = None
                blit = commands.blitCommandEncoder()
                blit.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size_(
                    each.source.buffer, each.source.offset, each.to.buffer, each.to.offset, each.to.size
                )
                blit.endEncoding()
                continue
            compute = compute or commands.computeCommandEncoder()
            compute.setComputePipelineState_(each.pipeline)
            for at, region in enumerate(each.launch.arguments):
                compute.setBuffer_offset_atIndex_(region.buffer, region.offset, at)
            compute.dispatchThreadgroups_threadsPerThreadgroup_(
                self._metal.MTLSizeMake(*each.launch.grid), self._metal.MTLSizeMake(*each.launch.block)
            )
        if compute is not None:
            compute.endEncoding()
        commands.commit()
        self._committed.append(commands)

    def finish(self) -> None:
        """Wait until everything that was submitted is done.

        Raises
        ------
        LostError
            A submission failed: those behind it need not.
        """
        committed, self._committed = self._committed, []
        for commands in committed:
            commands.waitUntilCompleted()
        for commands in committed:
            if commands.error() is not None:
                raise LostError(self.name, _words_of(commands.error()))


def _words_of(error: Any) -> str:
    """Return the first line of an NSError's description."""
    return str(error.localizedDescription()).strip().splitlines()[0] if error is not None else "no reason is given"
