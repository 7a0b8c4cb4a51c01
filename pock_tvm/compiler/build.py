"""Phase 10: kernels and executors to one shared library, or to its objects where nothing links."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import tvm
from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.support import cc
from tvm.target import Target

from relay_passes.ir import first_line
from schedules.decisions import DEFAULTS, Decisions

from ..device.runtime import CALL_KERNEL, CORES, pack_objects
from ..errors import BuildError, PockError
from .kernel_cache import KernelCache
from .targets import is_this_machine, kernel_target, linker_for, triple_of


def build_library(
    mod: IRModule,
    executors: Sequence[str],
    target: Target,
    places: Mapping[str, str],
    decisions: Mapping[str, Decisions] = MappingProxyType({}),
) -> bytes:
    """Compile the PrimFuncs of a module into a shared library.

    ``executors`` are entry points of TVM's calling convention; everything else is a kernel: a C function of pointers
    that returns 0. Kernels are built side by side, and only if they are not in the cache. Both mappings go by a
    kernel's name: ``places`` says what of the network it computes, ``decisions`` what is decided of its schedule. One
    more entry point, ``CALL_KERNEL``, calls a single kernel.

    Returns what :func:`pock_tvm.device.runtime.load_library` takes: a shared library, or its objects where this machine
    has no linker.

    Raises
    ------
    BuildError
        A kernel cannot be built.
    PockError
        Another machine's linker is needed, and is not there or fails.
    """
    linker = linker_for(target)  # where it is missing, that is said before kernels are built
    kernels = {var.name_hint: func for var, func in mod.functions.items() if var.name_hint not in executors}
    cache = KernelCache(target)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)

        def built(name: str) -> Path:
            return _kernel_object(kernels[name], decisions.get(name, DEFAULTS), target, cache, directory, places)

        with ThreadPoolExecutor(CORES) as pool:
            objects = [*pool.map(built, kernels), directory / "executors.o"]
        entries = {name: mod[name] for name in executors}
        entries[CALL_KERNEL] = call_kernel({name: len(func.params) for name, func in kernels.items()})
        tirx.build(IRModule(entries), target=target).write_to_file(str(objects[-1]), "o")
        library = directory / "program.so"
        if linker is not None and _link(objects, library, linker, target):
            return library.read_bytes()
        return pack_objects({path.name: path.read_bytes() for path in objects})


def _link(objects: Sequence[Path], library: Path, linker: str, target: Target) -> bool:
    """Whether a shared library was made of objects.

    A compiler of this machine that does not link is as good as none: macOS has a placeholder that only offers to
    install one, and on Linux the C library's development files may be missing.
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
    """An entry point that calls one of the kernels, which are given by name and number of operands.

    Its vector holds the number of the kernel, in alphabetical order, and the addresses of the operands.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(CALL_KERNEL)
        vector = T.arg("vector", T.Buffer((T.int64(),), "int64"))
        for number, (name, count) in enumerate(sorted(kernels.items())):
            with T.If(vector[0] == number), T.Then():
                operands = [T.reinterpret("handle", vector[1 + at]) for at in range(count)]
                T.evaluate(T.call_extern("int32", name, *operands))
    return builder.get().with_attr("global_symbol", CALL_KERNEL)


def _kernel_object(
    func: tirx.PrimFunc,
    decisions: Decisions,
    target: Target,
    cache: KernelCache,
    directory: Path,
    places: Mapping[str, str],
) -> Path:
    name, machine = func.attrs["global_symbol"], kernel_target(target)
    path, data = directory / f"{name}.o", cache.get(func, decisions)
    if data is not None:
        path.write_bytes(data)
        return path
    try:
        module = tvm.get_global_func("target.build.llvm")(machine.lower(machine.schedule(func, decisions)), target)
    except Exception as error:  # whatever TVM or LLVM say, they do not say of which layer
        raise BuildError(
            f"the kernel for {places.get(name, name)} cannot be built: {first_line(error)}. Write the model without "
            "this operator, and report the fault"
        ) from error
    module.write_to_file(str(path), "o")
    cache.put(path.read_bytes(), func, decisions)
    return path
