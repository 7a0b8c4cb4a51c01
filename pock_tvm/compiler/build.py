"""Phase 10: links kernels and executors into a shared library, or packs their objects if there is no linker."""

from __future__ import annotations

import io
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.support import cc
from tvm.target import Target

from relay_passes.memory.call_list import CallList, Check, KernelCall
from relay_passes.memory.lower_to_executor import emit_call
from schedules.kernels import finite

from ..device.contract import WORDS
from ..device.files import writing
from ..device.library import CALL_KERNEL, CONTRACT
from ..device.runtime import pack_objects
from ..errors import PockWarning
from .kernel_builder import KernelBuilder
from .targets import is_this_machine, linker_for, triple_of


class Library(NamedTuple):
    """Built kernels and executors of a program."""

    code: bytes
    """Code for :func:`pock_tvm.device.runtime.load_library`: a shared library, or objects if no linker was found."""
    kernels: bytes
    """Objects and definitions of the kernels: see :attr:`pock_tvm.Program.kernels`."""


def build_library(
    mod: IRModule,
    entries: Mapping[str, CallList],
    builder: KernelBuilder,
    places: Mapping[str, str],
    contract: Sequence[int] = (0,) * WORDS,
) -> Library:
    """Compile the PrimFuncs of a module into a shared library.

    ``entries`` are entry points of TVM's calling convention. Other functions are kernels: C functions of pointers that
    return 0. ``places`` says, for messages, what of the network a kernel computes. Extra entry points: ``CALL_KERNEL``
    calls a single kernel, ``CONTRACT`` tells ``contract`` (:mod:`pock_tvm.device.contract`).

    Raises
    ------
    BuildError
        A kernel cannot be built.

    Warns
    -----
    PockWarning
        The linker of another machine fails.
    """
    functions = {var.name_hint: func for var, func in mod.functions.items() if var.name_hint not in entries}
    calls = [call for entry in entries.values() for call in entry.calls if isinstance(call, KernelCall)]
    with writing(tempfile.gettempdir()), tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        codes = builder.codes(list(functions.values()), places)
        objects = [directory / f"{kernel}.o" for kernel in codes]
        for path, code in zip(objects, codes.values(), strict=True):
            path.write_bytes(code)
        executors = {name: mod[name] for name in entries}
        operands = {name: len(func.params) for name, func in functions.items()}
        executors[CALL_KERNEL] = call_kernel(operands | {call.kernel: len(call.operands) for call in calls})
        executors[CONTRACT] = tell(CONTRACT, contract)
        checks = [call for entry in entries.values() for call in entry.calls if isinstance(call, Check)]
        dtypes = sorted({check.dtype for check in checks if check.other is None})
        checkers = [finite.all_finite(dtype) for dtype in dtypes]
        checkers += [finite.all_factors()] if any(check.other for check in checks) else []
        modules = {"executors": executors}
        # Apart from their callers: LLVM would inline them, hundreds of times.
        named = {str(func.attrs["global_symbol"]): func for func in checkers}
        modules |= {name: {name: func} for name, func in named.items()}
        for name, content in modules.items():
            objects.append(directory / f"{name}.o")
            tirx.build(IRModule(content), target=builder.target).write_to_file(str(objects[-1]), "o")
        packed = packed_kernels({name: builder.definition_of(func) for name, func in functions.items()}, codes)
        return Library(link(objects, builder.target), packed)


def packed_kernels(definitions: Mapping[str, str], codes: Mapping[str, bytes]) -> bytes:
    """Pack code and definition of each kernel into a zip file: see :attr:`pock_tvm.Program.kernels`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, definition in sorted(definitions.items()):
            # No timestamps: equal kernels give equal bytes.
            archive.writestr(zipfile.ZipInfo(f"{name}.o"), codes[name], zipfile.ZIP_DEFLATED)
            archive.writestr(zipfile.ZipInfo(f"{name}.json"), definition, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def link(objects: Sequence[Path], target: Target) -> bytes:
    """Link objects of one folder into a shared library, or pack them if there is no linker.

    Warns
    -----
    PockWarning
        The linker of another machine fails.
    """
    library, linker = objects[0].with_name("linked.so"), linker_for(target)
    if linker is not None and _linked(objects, library, linker, target):
        return library.read_bytes()
    return pack_objects({path.name: path.read_bytes() for path in objects})


def _linked(objects: Sequence[Path], library: Path, linker: str, target: Target) -> bool:
    """Link objects into a shared library, and return whether that succeeded.

    A compiler that fails to link is treated as missing: macOS has a placeholder that only offers to install one, and
    Linux may lack the C library's development files. For another machine a warning says so: there objects may have no
    loader.
    """
    try:
        cc.create_shared(str(library), [str(path) for path in objects], cc=linker)
    except RuntimeError as error:
        if not is_this_machine(target):
            said = str(error).partition("\n\nCommand line:")[0].replace("\n", " ")
            warnings.warn(
                f"'{linker}' fails to link a program for {triple_of(target)}. So it holds objects, which that machine "
                f"loads with apache-tvm-ffi-orcjit; 'pock deploy' links them, too. The compiler says: {said}",
                PockWarning,
                stacklevel=2,
            )
        return False
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


def tell(name: str, numbers: Sequence[int]) -> tirx.PrimFunc:
    """Build an entry point that writes constant numbers into its int64 vector."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        vector = T.arg("vector", T.Buffer((len(numbers),), "int64"))
        for at, number in enumerate(numbers):
            T.buffer_store(vector, T.int64(number), [at])
    return builder.get().with_attr("global_symbol", name)
