"""Builds one kernel as a program does, and calls it."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import te, tirx

from pock_tvm.compiler.build import call_kernel
from pock_tvm.compiler.launches import pack_launches
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.device.errors import DeviceError
from pock_tvm.device.gpu.backend import Backend
from pock_tvm.device.gpu.devices import open_device
from pock_tvm.device.gpu.library import LaunchLibrary
from pock_tvm.device.gpu.memory import DeviceMemory
from pock_tvm.device.library import CALL_KERNEL
from pock_tvm.device.memory import ALIGNMENT, aligned
from pock_tvm.device.runtime import load_library, pack_objects
from schedules.cpu import CpuTarget, cpu_target
from schedules.cpu.lower import scratch_of
from schedules.cpu.traits import CpuTraits
from schedules.gpu import GpuTarget, gpu_target
from schedules.target import Target

LLVM = resolve_target("host")
HOST = cpu_target(LLVM)
CPUS = {
    "host": HOST,
    "avx2": CpuTarget(CpuTraits(lanes=8, registers=16, cores=2), LLVM),
    "neon": CpuTarget(CpuTraits(lanes=4, registers=32, cores=4), LLVM),
}
"""Every schedule runs on this machine, whatever CPU its tiles are meant for."""
TARGETS: dict[str, Target] = {
    **CPUS,
    "scalar": CpuTarget(CpuTraits(lanes=1, registers=32, cores=1), LLVM),
    "opencl": gpu_target(resolve_target("opencl")),
    "webgpu": gpu_target(resolve_target("webgpu")),
}
"""What every definition is tested on, by the fixture ``target``; :func:`built` runs its kernels."""

Kernel = Callable[..., te.Tensor | list[te.Tensor]]


def run(kernel: Kernel, *arrays: np.ndarray, target: Target = HOST, **options: Any) -> np.ndarray:
    """What a scheduled kernel makes of arrays."""
    return call(scheduled(kernel, *arrays, target=target, **options), *arrays, target=target)


def scheduled(kernel: Kernel, *arrays: np.ndarray, target: Target = HOST, **options: Any) -> tirx.PrimFunc:
    """The schedule of a kernel of operands like the arrays."""
    return target.schedule(defined(kernel, *arrays, **options))


def defined(kernel: Kernel, *arrays: np.ndarray, **options: Any) -> tirx.PrimFunc:
    """A kernel of operands like the arrays, unscheduled, as ``call_te`` makes it."""
    operands = [
        te.placeholder([tirx.IntImm("int64", extent) for extent in array.shape], str(array.dtype), f"operand{index}")
        for index, array in enumerate(arrays)
    ]
    results = kernel(*operands, **options)
    results = results if isinstance(results, list) else [results]
    return te.create_prim_func([*operands, *results], index_dtype_override="int64")


def call(func: tirx.PrimFunc, *arrays: np.ndarray, target: Target = HOST, times: int = 1) -> Any:
    """The result of a function (or a list of what it is each time): its last parameter, which it has to fill and no
    more."""
    function = built(func, target)
    result_type = func.params[-1].ty
    shape, dtype = [int(extent) for extent in result_type.shape], str(result_type.dtype)
    results = []
    for _ in range(times):
        result, around = _guarded(shape, dtype)
        function(*arrays, result)
        assert all((memory == 0xFF).all() for memory in around), "written outside"
        results.append(result)
    return results if times > 1 else results[0]


def built(func: tirx.PrimFunc, target: Target = HOST) -> Callable[..., None]:
    """A scheduled function, compiled for this machine. It works in place on aligned arrays, and on copies of others."""
    if isinstance(target, GpuTarget):
        return _built_for_gpu(func, target)
    mod = target.lower(func.with_attr("global_symbol", "kernel"))
    kernel, scratch = object_of(tvm.get_global_func("target.build.llvm")(mod, LLVM)), scratch_of(mod)
    library = load_library(pack_objects({"kernel.o": kernel, "entry.o": entry(len(func.params) + bool(scratch))}))

    def call(*arrays: np.ndarray) -> None:
        operands = [array if array.ctypes.data % ALIGNMENT == 0 else _aligned_copy(array) for array in arrays]
        assert all(operand.flags.c_contiguous for operand in operands)
        around: list[np.ndarray] = []
        if scratch:
            memory, around = _guarded([scratch], "uint8")
            operands.append(memory)
        library.run(CALL_KERNEL, library.table([0, *(operand.ctypes.data for operand in operands)]))
        assert all((memory == 0xFF).all() for memory in around), "written outside of the scratch"

    return call


def _built_for_gpu(func: tirx.PrimFunc, target: GpuTarget) -> Callable[..., None]:
    """A scheduled function for the first device of a dialect: it works on copies, with bytes around each."""
    dialect = target.traits.dialect
    codes = {"kernel": target.code(func.with_attr("global_symbol", "kernel"))}
    (size,) = [json.loads(code)["sizes"][len(func.params) :] for code in codes.values()]
    backend = first_device(dialect)
    memory = DeviceMemory(backend)
    library = LaunchLibrary(pack_launches(codes, dialect), {}, backend, memory)

    def call(*arrays: np.ndarray) -> None:
        lengths = [array.nbytes for array in arrays] + size
        starts, end = [], backend.alignment
        for length in lengths:
            starts.append(end)
            end += (length // backend.alignment + 2) * backend.alignment
        place = memory.allocate([end], "uint8")
        content = np.full(end, 0xFF, "uint8")
        for start, array in zip(starts, arrays, strict=False):
            content[start : start + array.nbytes] = array.reshape(-1).view("uint8")
        memory.write(place, content)
        library.run(CALL_KERNEL, library.table([0, *(place.start + start for start in starts)]))
        content = memory.read(place).copy()
        for start, array in zip(starts, arrays, strict=False):
            array[...] = content[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        for start, length in zip(starts, lengths, strict=True):
            content[start : start + length] = 0xFF
        assert (content == 0xFF).all(), "written outside"

    return call


@functools.cache
def first_device(dialect: str) -> Backend:
    """The first device of a dialect; a test that needs it is skipped where there is none."""
    try:
        return open_device(dialect, dialect)
    except DeviceError as error:
        pytest.skip(str(error))


@functools.cache
def entry(operands: int) -> bytes:
    """The object that calls a kernel of so many operands."""
    return object_of(tirx.build(tvm.IRModule({CALL_KERNEL: call_kernel({"kernel": operands})}), target=LLVM))


def object_of(module: tvm.runtime.Module) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "module.o"
        module.write_to_file(str(path), "o")
        return path.read_bytes()


def is_cpu(target: Target) -> bool:
    """Whether a target's loops are a CPU's: those that :func:`traces` and :func:`is_one_nest` know."""
    return isinstance(target, CpuTarget)


def has_vectors(target: Target) -> bool:
    """Whether a target is a CPU with vectors, which decide what is tiled and how."""
    return isinstance(target, CpuTarget) and target.traits.lanes > 1


def traces(func: tirx.PrimFunc) -> set[str]:
    """What a schedule left in a function: kinds of loops, and ``local`` results."""
    script = func.script()
    marks = {
        "parallel": "T.parallel(",
        "vectorized": "T.vectorized(",
        "unrolled": "T.unroll(",
        "local": 'scope="local"',
    }
    return {name for name, mark in marks.items() if mark in script}


def is_one_nest(func: tirx.PrimFunc) -> bool:
    """Whether a function goes through all its steps in one loop over rows, not through one step after the other."""
    return isinstance(func.body.block.body, tirx.For)


def noise(seed: str, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Normal float32 arrays, the same for the same seed."""
    rng = np.random.default_rng(list(seed.encode()))
    return [_aligned_copy(rng.standard_normal(shape).astype("float32")) for shape in shapes]


def doubles(*arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays, floats in double precision."""
    return [array.astype("float64") if array.dtype.kind == "f" else array for array in arrays]


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal but for rounding: relative to the largest value, since a sum's terms may cancel."""
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max(initial=0))


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    copy, _ = _guarded(array.shape, str(array.dtype))
    copy[...] = array
    return copy


def _guarded(shape: Sequence[int], dtype: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """An aligned array in the middle of bytes that are all ones, as it is itself: as floats, NaN."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = aligned([size + 2 * ALIGNMENT], "uint8")
    memory[...] = 0xFF
    before, middle, after = np.split(memory, [ALIGNMENT, ALIGNMENT + size])
    return middle.view(dtype).reshape(shape), [before, after]
