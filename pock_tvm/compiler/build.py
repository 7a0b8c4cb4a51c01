"""Phase 10: links kernels and executors into a shared library, or packs their objects if there is no linker."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import tvm
from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.support import cc
from tvm.target import Target

from relay_passes.ir import first_line
from relay_passes.memory.lower_to_executor import emit_call
from schedules.decisions import DEFAULTS, Decisions

from ..device.runtime import CALL_KERNEL, CORES, pack_objects
from ..errors import BuildError, PockError
from .kernel_cache import Kernel, KernelCache
from .targets import is_this_machine, kernel_target, linker_for, triple_of


class Library(NamedTuple):
    """Built kernels and executors of a program."""

    code: bytes
    """Code for :func:`pock_tvm.device.runtime.load_library`: a shared library, or objects if this machine has no
    linker."""
    kernels: bytes
    """Objects and definitions of the kernels: see :attr:`pock_tvm.Program.kernels`."""


def build_library(
    mod: IRModule,
    executors: Sequence[str],
    target: Target,
    places: Mapping[str, str],
    decisions: Mapping[str, Decisions] = MappingProxyType({}),
) -> Library:
    """Compile the PrimFuncs of a module into a shared library.

    ``executors`` are entry points of TVM's calling convention. Other functions are kernels: C functions of pointers
    that return 0. Kernels not in the cache are built in parallel. ``places`` (what of the network a kernel computes,
    for messages) and ``decisions`` (its schedule's) are keyed by kernel name. An extra entry point, ``CALL_KERNEL``,
    calls a single kernel.

    Raises
    ------
    BuildError
        A kernel cannot be built.
    PockError
        The linker of another machine is missing or fails.
    """
    linker = linker_for(target)  # first, so that a missing linker is reported before kernels are built
    functions = {var.name_hint: func for var, func in mod.functions.items()}
    kernels = {name: Kernel(func) for name, func in functions.items() if name not in executors}
    cache = KernelCache(target)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)

        def built(name: str) -> Path:
            return _kernel_object(kernels[name], decisions.get(name, DEFAULTS), target, cache, directory, places)

        with ThreadPoolExecutor(CORES) as pool:
            objects = [*pool.map(built, kernels), directory / "executors.o"]
        entries = {name: functions[name] for name in executors}
        entries[CALL_KERNEL] = call_kernel({name: len(kernel.func.params) for name, kernel in kernels.items()})
        tirx.build(IRModule(entries), target=target).write_to_file(str(objects[-1]), "o")
        packed = _packed(kernels, directory)
        library = directory / "program.so"
        if linker is not None and _link(objects, library, linker, target):
            return Library(library.read_bytes(), packed)
        return Library(pack_objects({path.name: path.read_bytes() for path in objects}), packed)


def _packed(kernels: Mapping[str, Kernel], objects: Path) -> bytes:
    """Pack object and definition of each kernel into a zip file: see :attr:`pock_tvm.Program.kernels`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, kernel in sorted(kernels.items()):
            # No timestamps: equal kernels give equal bytes.
            archive.writestr(zipfile.ZipInfo(f"{name}.o"), (objects / f"{name}.o").read_bytes(), zipfile.ZIP_DEFLATED)
            archive.writestr(zipfile.ZipInfo(f"{name}.json"), kernel.definition, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _link(objects: Sequence[Path], library: Path, linker: str, target: Target) -> bool:
    """Link objects into a shared library, and return whether that succeeded.

    A host compiler that fails to link is treated as missing: macOS has a placeholder that only offers to install one,
    and Linux may lack the C library's development files.
    """
    try:
        cc.create_shared(str(library), [str(path) for path in objects], cc=linker)
    except RuntimeError as error:
        if is_this_machine(target):
            return False
        said = str(error).partition("\n\nCommand line:")[0].replace("\n", " ")
        raise PockError(f"'{linker}' fails to link a program for {triple_of(target)}: {said}") from error
    return True


def call_kernel(kernels: Mapping[str, int]) -> tirx.PrimFunc:
    """Build an entry point that calls one kernel. ``kernels`` maps names to operand counts.

    Its int64 vector holds the index of the kernel in alphabetical order, then the addresses of the operands.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(CALL_KERNEL)
        vector = T.arg("vector", T.Buffer((T.int64(),), "int64"))
        for number, (name, count) in enumerate(sorted(kernels.items())):
            with T.If(vector[0] == number), T.Then():
                operands = [T.reinterpret("handle", vector[1 + at]) for at in range(count)]
                emit_call(name, operands)
    return builder.get().with_attr("global_symbol", CALL_KERNEL)


def _kernel_object(
    kernel: Kernel,
    decisions: Decisions,
    target: Target,
    cache: KernelCache,
    directory: Path,
    places: Mapping[str, str],
) -> Path:
    name, machine = kernel.name, kernel_target(target)
    path, data = directory / f"{name}.o", cache.get(kernel, decisions)
    if data is not None:
        path.write_bytes(data)
        return path
    try:
        module = tvm.get_global_func("target.build.llvm")(
            machine.lower(machine.schedule(kernel.func, decisions)), target
        )
    except Exception as error:  # TVM and LLVM do not name the layer
        raise BuildError(
            f"the kernel for {places.get(name, name)} cannot be built: {first_line(error)}. Write the model without "
            "this operator, and report the fault"
        ) from error
    module.write_to_file(str(path), "o")
    cache.put(path.read_bytes(), kernel, decisions)
    return path
