"""A driver of CUDA in place of NVIDIA's: its GPU's memory is this process's, and its stream runs when it has to."""

from __future__ import annotations

import ctypes
import enum
import types

import numpy as np


class Status(enum.Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


class Driver:
    """Work of the stream waits until somebody waits for it, so that whoever reuses memory too early is found out."""

    CUresult = Status
    CUdevice_attribute = types.SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1
    )
    CUstream_flags = types.SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = types.SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
    CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2)

    def __init__(self, capability=(8, 7), free=2**30, functions=()) -> None:
        self.capability, self.free, self.functions = capability, free, dict(functions)
        self.memory: dict[int, np.ndarray] = {}
        self.locked: list[np.ndarray] = []
        self.queue: list = []
        self.capturing: list | None = None
        self.broken = False
        self.launches: list = []
        self.contexts: list = []
        self.clock = 0
        """Milliseconds: work takes one each."""

    # ---- devices
    def cuInit(self, _flags):
        return (Status.CUDA_SUCCESS,)

    def cuDeviceGetCount(self):
        return Status.CUDA_SUCCESS, 1

    def cuDeviceGet(self, number):
        return Status.CUDA_SUCCESS, number

    def cuDeviceGetName(self, size, _device):
        return Status.CUDA_SUCCESS, b"Some GPU".ljust(size, b"\0")

    def cuDeviceGetAttribute(self, which, _device):
        return Status.CUDA_SUCCESS, self.capability[which]

    def cuDevicePrimaryCtxRetain(self, _device):
        return Status.CUDA_SUCCESS, "context"

    def cuCtxPushCurrent(self, context):
        self.contexts.append(context)
        return (Status.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self):
        return Status.CUDA_SUCCESS, self.contexts.pop()

    def cuStreamCreate(self, _flags):
        return Status.CUDA_SUCCESS, "stream"

    # ---- memory
    def cuMemGetInfo(self):
        return Status.CUDA_SUCCESS, self.free, 2**31

    def cuMemAlloc(self, size):
        assert self.contexts == ["context"]
        if size > self.free:
            return Status.CUDA_ERROR_OUT_OF_MEMORY, None
        array = np.full(size, 0xAB, "uint8")
        self.memory[array.ctypes.data] = array
        self.free -= size
        return Status.CUDA_SUCCESS, array.ctypes.data

    def cuMemFree(self, address):
        assert self.contexts == ["context"]
        self.run()
        self.free += self.memory.pop(address).size
        return (Status.CUDA_SUCCESS,)

    def cuMemHostAlloc(self, size, _flags):
        self.locked.append(np.zeros(size, "uint8"))
        return Status.CUDA_SUCCESS, self.locked[-1].ctypes.data

    def cuMemFreeHost(self, _address):
        return (Status.CUDA_SUCCESS,)

    def cuMemsetD8Async(self, address, value, size, stream):
        return self.enqueue(stream, lambda: ctypes.memset(address, value, size))

    def cuMemcpyHtoDAsync(self, address, source, size, stream):
        return self.enqueue(stream, lambda: ctypes.memmove(address, source, size))

    def cuMemcpyDtoHAsync(self, target, address, size, stream):
        return self.enqueue(stream, lambda: ctypes.memmove(target, address, size))

    def cuMemcpyDtoDAsync(self, target, address, size, stream):
        return self.enqueue(stream, lambda: ctypes.memmove(target, address, size))

    # ---- functions
    def cuModuleLoadData(self, image):
        return Status.CUDA_SUCCESS, ctypes.string_at(image, 4)

    def cuModuleUnload(self, _module):
        return (Status.CUDA_SUCCESS,)

    def cuModuleGetFunction(self, module, symbol):
        assert module == b"\x7fELF" and self.capturing is None
        return Status.CUDA_SUCCESS, symbol

    def cuLaunchKernel(self, function, *rest):
        *sizes, shared, stream, places, extra = rest
        assert (shared, extra) == (0, 0) and len(sizes) == 6
        run, count = self.functions[function]
        pointers = (ctypes.POINTER(ctypes.c_uint64) * count).from_address(places)
        addresses = [pointer.contents.value for pointer in pointers]
        self.launches.append((function, tuple(sizes), addresses))
        return self.enqueue(stream, lambda: run(*addresses))

    # ---- the stream
    def enqueue(self, stream, work):
        assert (stream, self.contexts) == ("stream", ["context"])
        (self.queue if self.capturing is None else self.capturing).append(work)
        return (Status.CUDA_ERROR_ILLEGAL_ADDRESS if self.broken else Status.CUDA_SUCCESS,)

    def run(self):
        while self.queue:
            self.queue.pop(0)()
            self.clock += 1

    def cuStreamSynchronize(self, _stream):
        self.run()
        return (Status.CUDA_ERROR_ILLEGAL_ADDRESS if self.broken else Status.CUDA_SUCCESS,)

    def cuEventCreate(self, _flags):
        return Status.CUDA_SUCCESS, [None, 0]

    def cuEventRecord(self, event, _stream):
        event[0] = mark = lambda: event.__setitem__(1, self.clock)
        self.queue.append(mark)
        return (Status.CUDA_SUCCESS,)

    def cuEventElapsedTime(self, start, end):
        return Status.CUDA_SUCCESS, end[1] - start[1]

    def cuEventDestroy(self, _event):
        return (Status.CUDA_SUCCESS,)

    def cuEventSynchronize(self, event):
        while event[0] in self.queue:
            self.queue.pop(0)()
        return (Status.CUDA_SUCCESS,)

    def cuStreamBeginCapture(self, _stream, _mode):
        self.capturing = []
        return (Status.CUDA_SUCCESS,)

    def cuStreamEndCapture(self, _stream):
        found, self.capturing = self.capturing, None
        return Status.CUDA_SUCCESS, found

    def cuGraphInstantiate(self, graph, _flags):
        return Status.CUDA_SUCCESS, list(graph)

    def cuGraphDestroy(self, graph):
        graph.clear()
        return (Status.CUDA_SUCCESS,)

    def cuGraphExecDestroy(self, _graph):
        return (Status.CUDA_SUCCESS,)

    def cuGraphLaunch(self, graph, _stream):
        self.queue += graph
        return (Status.CUDA_SUCCESS,)
