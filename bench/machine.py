"""Limits of every kernel on a machine: the rates of multiply-adds on registers and of copies in memory."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from pock_tvm.compiler.build import call_kernel
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.device.library import CALL_KERNEL
from pock_tvm.device.memory import aligned
from pock_tvm.device.runtime import HostLibrary, load_library, pack_objects
from schedules.cpu import cpu_target

SUMS = 12
"""Vectors that a thread multiplies and adds to in turn: enough to hide the latency, and few enough for 16 registers."""
STEPS = 200_000
"""Multiply-adds on each vector in a call, which takes about a millisecond."""
CALLS = 4
"""Calls of a measurement: the first one wakes the threads."""
COPIED = 256 * 2**20
"""Bytes that a copy moves: more than a cache holds."""


class Machine:
    """Multiply-adds on registers, and a copy in memory, on all threads. Each is the best of all its measurements."""

    flops = 0.0
    """Floating-point operations per second, in float32."""
    bandwidth = 0.0
    """Bytes per second, read and written."""

    def __init__(self, threads: int) -> None:
        import torch

        target = resolve_target("host")
        lanes = cpu_target(target).traits.lanes
        self._sums = aligned((threads * SUMS * lanes,), "float32")
        self._flops = 2.0 * STEPS * self._sums.size
        self._library = _library(_multiply_adds(threads, lanes), threads)
        self._table = self._library.table([0, self._sums.ctypes.data])
        self._from, self._to = (torch.from_numpy(np.ones(COPIED // 4, np.float32)) for _ in range(2))

    def measure_flops(self) -> float:
        """Measure the multiply-adds once more, and return what the best of a few calls does."""
        now = self._flops / min(self._library.seconds(CALL_KERNEL, self._table) for _ in range(CALLS))
        self.flops = max(self.flops, now)
        return now

    def measure_bandwidth(self) -> None:
        """Measure the copy once more."""
        start = time.perf_counter()
        self._to.copy_(self._from)
        self.bandwidth = max(self.bandwidth, 2 * COPIED / (time.perf_counter() - start))


def _library(kernel: tirx.PrimFunc, threads: int) -> HostLibrary:
    target = resolve_target("host")
    entry = tirx.build(IRModule({CALL_KERNEL: call_kernel({"multiply_adds": 1})}), target=target)
    with tempfile.NamedTemporaryFile(suffix=".o") as file:
        entry.write_to_file(file.name, "o")
        objects = {"entry.o": Path(file.name).read_bytes()}
    return load_library(pack_objects(objects | {"kernel.o": cpu_target(target).code(kernel)}), threads)


def _multiply_adds(threads: int, lanes: int) -> tirx.PrimFunc:
    """Return a kernel of ``threads`` tasks that each do ``STEPS`` multiply-adds on ``SUMS`` vectors. LLVM keeps them in
    registers."""
    half, one = (tirx.Broadcast(tirx.const(number, "float32"), lanes) for number in (0.5, 1.0))
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("multiply_adds")
        T.func_attr({"tirx.noalias": True, "global_symbol": "multiply_adds"})
        x = T.arg("x", T.Buffer((threads * SUMS * lanes,), "float32"))
        with T.sblock("root"), T.parallel(threads) as task, T.serial(STEPS):
            for n in range(SUMS):
                vector = tirx.Ramp((task * SUMS + n) * lanes, 1, lanes)
                T.buffer_store(x, x[vector] * half + one, [vector])
    return builder.get()
