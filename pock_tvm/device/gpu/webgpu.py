"""Back end for WebGPU, by ``wgpu``: on Vulkan, Metal and DirectX."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DeviceError
from .backend import LESS_MEMORY, MIB, Backend, Command, CopyBytes, Launch, LostError, Region
from .words import WORD, copy_in_words, in_words, whole_words

TIMESTAMPS = "timestamp-query"
"""Feature of an adapter that times passes."""
FUNCTION = re.compile(r"^//-+\n// Function: (\w+)\n//-+\n", re.MULTILINE)
"""What each function's text begins with."""
LIMITS = (
    "max-buffer-size",
    "max-compute-invocations-per-workgroup",
    "max-compute-workgroup-size-x",
    "max-compute-workgroup-size-y",
    "max-compute-workgroup-size-z",
    "max-compute-workgroup-storage-size",
    "max-storage-buffer-binding-size",
    "max-storage-buffers-per-shader-stage",
)
"""Limits that are raised to what the adapter has."""


@dataclass(frozen=True)
class _Dispatch:
    """A launch as it is encoded."""

    pipeline: Any
    group: Any
    grid: tuple[int, int, int]


class WebGpuBackend(Backend):
    """The adapter of a number among all that WebGPU knows here.

    Raises
    ------
    DeviceError
        ``wgpu`` is not installed, or there is no such adapter.
    """

    integer_bits = 32

    def __init__(self, number: int) -> None:
        try:
            import wgpu
        except ImportError as error:
            raise DeviceError(f"WebGPU needs wgpu: pip install 'pock-tvm[webgpu]' ({error})") from error
        self._wgpu = wgpu
        self.name = "WebGPU"
        with self._speaking("adapters"):
            adapters = wgpu.gpu.enumerate_adapters_sync()
        if number >= len(adapters):
            known = ", ".join(f"webgpu:{at} {adapter.info['device']}" for at, adapter in enumerate(adapters))
            raise DeviceError(
                f"there is no device webgpu:{number}: "
                + (
                    f"there are {known}"
                    if known
                    else "no driver is installed (Debian: mesa-vulkan-drivers runs on CPUs)"
                )
            )
        adapter = adapters[number]
        self.name = f"{adapter.info['device']} ({adapter.info['backend_type']})"
        with self._speaking(self.name):
            self._device = adapter.request_device_sync(
                required_features=[each for each in ("shader-f16", TIMESTAMPS) if each in adapter.features],
                required_limits={name: adapter.limits[name] for name in LIMITS},
            )
        self._limits = self._device.limits
        self.alignment = self._limits["min-storage-buffer-offset-alignment"]
        self._texts: dict[str, str] = {}
        """Texts of device functions, by symbol."""
        self._pipelines: dict[str, Any] = {}
        self._layouts: dict[int, Any] = {}
        """Layouts of so many bindings each."""
        self._mark = self.allocate(WORD)
        """Buffer that is read to wait for what was submitted before."""
        self._between: Any = None
        """Buffer on the way of copies within one buffer."""
        self._timer = _Timer(self._device, wgpu.BufferUsage) if TIMESTAMPS in self._device.features else None
        if self._timer is None:
            self.clock = "the host's clock, with the time to submit: the adapter has no timestamps"

    @contextlib.contextmanager
    def _speaking(self, what: str = "") -> Iterator[None]:
        """Word what WebGPU reports, of ``what`` or of the device. Errors of its library are its own classes, or plain
        ones."""
        try:
            yield
        except (self._wgpu.GPUError, RuntimeError) as error:
            said = _last_cause(str(error)) or type(error).__name__
            raise (DeviceError(f"{what}: WebGPU failed: {said}") if what else LostError(self.name, said)) from error

    def largest_buffer(self) -> int:
        return self._limits["max-buffer-size"]

    def allocate(self, size: int) -> Any:
        self.refuse_buffer(size)
        usage = self._wgpu.BufferUsage
        with self._speaking():
            try:
                return self._device.create_buffer(
                    size=whole_words(size), usage=usage.STORAGE | usage.COPY_SRC | usage.COPY_DST
                )
            except self._wgpu.GPUOutOfMemoryError as error:
                raise DeviceError(
                    f"{self.name} has too little memory: {size / MIB:.1f} MiB more are needed, and WebGPU does not "
                    f"tell how much is there. {LESS_MEMORY}"
                ) from error

    def write(self, region: Region, values: np.ndarray) -> None:
        filled = np.zeros(whole_words(values.nbytes), "uint8")
        filled[: values.nbytes] = values.reshape(-1).view("uint8")
        with self._speaking():
            self._device.queue.write_buffer(region.buffer, region.offset, filled)

    def read(self, region: Region) -> np.ndarray:
        if not region.size:
            return np.empty(0, "uint8")
        with self._speaking():
            found = self._device.queue.read_buffer(region.buffer, region.offset, whole_words(region.size))
        return np.frombuffer(found, "uint8")[: region.size].copy()

    def load(self, kernel: str, text: bytes) -> None:
        _, *parts = FUNCTION.split(text.decode())
        for symbol, part in zip(parts[::2], parts[1::2], strict=True):
            self._texts[symbol] = part
            self._pipelines.pop(symbol, None)

    def record(self, commands: Sequence[Command]) -> Any:
        groups: dict[tuple[Any, ...], Any] = {}
        recorded: list[_Dispatch | CopyBytes] = []
        for command in commands:
            if isinstance(command, CopyBytes):
                recorded += self._copies(command)
            else:
                recorded.append(self._dispatch(command, groups))
        return recorded

    def _copies(self, command: CopyBytes) -> list[CopyBytes]:
        """A copy as WebGPU makes it: of whole words, and from one buffer to another."""
        copy = copy_in_words(command, self.name)
        if copy.to.buffer is not copy.source.buffer:
            return [copy]
        if self._between is None or self._between.size < copy.to.size:
            self._between = self.allocate(copy.to.size)
        between = Region(self._between, 0, copy.to.size)
        return [CopyBytes(between, copy.source), CopyBytes(copy.to, between)]

    def _dispatch(self, launch: Launch, groups: dict[tuple[Any, ...], Any]) -> _Dispatch:
        regions = [in_words(each) for each in launch.arguments]
        self._check(launch, regions)
        layout = self._layout(len(regions))
        key = tuple((id(each.buffer), each.offset, each.size) for each in regions)
        with self._speaking(launch.kernel):
            if key not in groups:
                groups[key] = self._device.create_bind_group(
                    layout=layout,
                    entries=[
                        {"binding": at, "resource": {"buffer": each.buffer, "offset": each.offset, "size": each.size}}
                        for at, each in enumerate(regions)
                    ],
                )
            if launch.symbol not in self._pipelines:
                module = self._device.create_shader_module(code=self._texts[launch.symbol])
                self._pipelines[launch.symbol] = self._device.create_compute_pipeline(
                    layout=self._device.create_pipeline_layout(bind_group_layouts=[layout]),
                    compute={"module": module, "entry_point": launch.symbol},
                )
        return _Dispatch(self._pipelines[launch.symbol], groups[key], launch.grid)

    def _layout(self, count: int) -> Any:
        if count not in self._layouts:
            entry = {"visibility": self._wgpu.ShaderStage.COMPUTE, "buffer": {"type": "storage"}}
            with self._speaking():
                self._layouts[count] = self._device.create_bind_group_layout(
                    entries=[{"binding": at, **entry} for at in range(count)]
                )
        return self._layouts[count]

    def _check(self, launch: Launch, regions: Sequence[Region]) -> None:
        """Name a kernel that the device has too little for."""
        threads = launch.block[0] * launch.block[1] * launch.block[2]
        needed = {
            "max-storage-buffers-per-shader-stage": (len(regions), "buffers"),
            "max-compute-invocations-per-workgroup": (threads, "threads a block"),
            "max-storage-buffer-binding-size": (
                max((each.size for each in regions), default=0),
                "bytes of one operand",
            ),
        }
        for limit, (count, what) in needed.items():
            if count > self._limits[limit]:
                raise DeviceError(
                    f"kernel {launch.kernel} takes {count} {what}, and {self.name} has {self._limits[limit]}: compile "
                    "the model for a smaller batch, or take another device"
                )

    def submit(self, recorded: Any) -> None:
        with self._speaking():
            encoder = self._device.create_command_encoder()
            run = None
            for each in recorded:
                if isinstance(each, CopyBytes):
                    if run is not None:
                        run.end()
                        run = None
                    source, to = each.source, each.to
                    encoder.copy_buffer_to_buffer(source.buffer, source.offset, to.buffer, to.offset, to.size)
                    continue
                if run is None:
                    run = encoder.begin_compute_pass()
                _encode(run, [each])
            if run is not None:
                run.end()
            self._device.queue.submit([encoder.finish()])

    def seconds(self, recorded: Any) -> float:
        dispatches = [each for each in recorded if isinstance(each, _Dispatch)]
        if self._timer is None or len(dispatches) < len(recorded):  # only passes have timestamps
            return super().seconds(recorded)
        with self._speaking():
            encoder = self._device.create_command_encoder()
            run = encoder.begin_compute_pass(timestamp_writes=self._timer.writes)
            _encode(run, dispatches)
            run.end()
            return self._timer.submitted(encoder)

    def finish(self) -> None:
        self.read(Region(self._mark, 0, WORD))  # on_submitted_work_done fails in wgpu 0.32


def _encode(run: Any, dispatches: Sequence[_Dispatch]) -> None:
    """Write launches to a pass."""
    for each in dispatches:
        run.set_pipeline(each.pipeline)
        run.set_bind_group(0, each.group)
        run.dispatch_workgroups(*each.grid)


class _Timer:
    """Two timestamps of a device: when a pass begins, and when it ends."""

    BYTES = 16

    def __init__(self, device: Any, usage: Any) -> None:
        from wgpu.backends.wgpu_native import lib

        self._queue = device.queue
        self._set = device.create_query_set(type="timestamp", count=2)
        self._found = device.create_buffer(size=self.BYTES, usage=usage.QUERY_RESOLVE | usage.COPY_SRC)
        self._tick = 1e-9 * lib.wgpuQueueGetTimestampPeriod(self._queue._internal)  # wgpu has no word of its own for it
        self.writes = {
            "query_set": self._set,
            "beginning_of_pass_write_index": 0,
            "end_of_pass_write_index": 1,
        }

    def submitted(self, encoder: Any) -> float:
        """Submit commands with a pass that writes both, and return the seconds between them."""
        encoder.resolve_query_set(self._set, 0, 2, self._found, 0)
        self._queue.submit([encoder.finish()])
        begin, end = np.frombuffer(self._queue.read_buffer(self._found, 0, self.BYTES), "uint64")
        return self._tick * float(end - begin)


def _last_cause(message: str) -> str:
    """Return the innermost cause of an error of WebGPU, which comes last of several lines."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else ""
