"""Builds the schedules of a kernel for the device that measures them."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import tempfile
from pathlib import Path

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.target import Target

from relay_passes.memory.lower_to_executor import emit_call
from schedules.cpu.lower import object_of, scratch_of
from schedules.decisions import DEFAULTS, Decisions

from ..compiler.build import link
from ..compiler.launches import pack_launches
from ..compiler.targets import instructions_of, kernel_target, triple_of
from ..device.measuring.bench import Built, Kernel
from ..device.measuring.cpu_bench import REPEAT
from ..device.measuring.operands import Operand
from ..device.runtime import pack_objects

CACHES = 2
"""Operands of a round, in second-level caches of all cores: in a step, too, others have used the caches since."""
MOST_SETS = 64
"""Most copies of the operands that a round goes through."""


class Builder:
    """Builds schedules of one kernel. ``is_here``: for this machine, which loads a CPU's objects without a linker."""

    def __init__(self, func: tirx.PrimFunc, target: Target, *, is_here: bool) -> None:
        self.func, self.target, self._is_here = func, target, is_here
        self.kernel_target = kernel_target(target)
        self._operands = tuple(Operand(tuple(map(int, each.ty.shape)), str(each.ty.dtype)) for each in func.params)

    def kernel(self) -> Kernel:
        """Return what a bench has to know of the kernel, its default schedule among it."""
        traits, size = self.kernel_target.traits, sum(each.nbytes for each in self._operands)
        sets = min(MOST_SETS, max(1, math.ceil(CACHES * traits.cache_bytes * traits.cores / max(1, size))))
        target = {"triple": triple_of(self.target), "instructions": instructions_of(self.target)}
        return Kernel(target, self._operands, sets, self.build(DEFAULTS))

    def build(self, decisions: Decisions) -> Built:
        """Schedule and build the kernel. Several may be built at once, in threads."""
        scheduled = self.kernel_target.schedule(self.func, decisions)
        return self._launches(scheduled) if self.kernel_target.is_gpu else self._library(scheduled)

    def _launches(self, scheduled: tirx.PrimFunc) -> Built:
        code = self.kernel_target.code(scheduled)
        name = f"kernel_{hashlib.sha256(code).hexdigest()[:16]}"  # a device knows texts by their names
        scratch = json.loads(code)["sizes"][len(self._operands) :]
        return Built(pack_launches({name: code}, str(self.target.kind.name)), tuple(scratch))

    def _library(self, scheduled: tirx.PrimFunc) -> Built:
        lowered = self.kernel_target.lower(scheduled)
        scratch = (scratch_of(lowered),) if scratch_of(lowered) else ()
        objects = {"driver.o": self._driver(len(scratch)), "kernel.o": object_of(lowered, self.target)}
        if self._is_here:
            return Built(pack_objects(objects), scratch)
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in objects]
            for path, content in zip(paths, objects.values(), strict=True):
                path.write_bytes(content)
            return Built(link(paths, self.target), scratch)

    @functools.lru_cache(2)  # noqa: B019 - a builder lives as long as its kernel is measured
    def _driver(self, scratch: int) -> bytes:
        driver = repeat(str(self.func.attrs["global_symbol"]), len(self._operands) + scratch)
        module = tirx.build(tvm.IRModule({REPEAT: driver}), target=self.target)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "driver.o"
            module.write_to_file(str(path), "o")
            return path.read_bytes()


def repeat(kernel: str, count: int) -> tirx.PrimFunc:
    """Build the entry point :data:`REPEAT` for a kernel of ``count`` operands, scratch among them."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(REPEAT)
        vector = T.arg("vector", T.Buffer((T.int64(),), "int64"))
        with T.serial(vector[0]), T.serial(vector[1]) as call:
            emit_call(kernel, [T.reinterpret("handle", vector[2 + call * count + at]) for at in range(count)])
    return builder.get().with_attr("global_symbol", REPEAT)
