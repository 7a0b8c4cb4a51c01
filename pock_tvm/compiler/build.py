"""Phase 10: kernels and executors to one shared library, or to its objects where nothing links."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tvm
from tvm import IRModule, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.support import cc
from tvm.target import Target

from relay_passes.ir import first_line
from schedules.cpu import prefetch_results, schedule_cpu, traits_of

from ..device.runtime import CALL_KERNEL, CORES, pack_objects
from ..errors import BuildError, PockError
from .kernel_cache import KernelCache
from .targets import is_this_machine, linker_for, triple_of

DEVICE_TYPE_CPU = 1


def build_library(mod: IRModule, executors: Sequence[str], target: Target, places: Mapping[str, str]) -> bytes:
    """Compile the PrimFuncs of a module into a shared library.

    ``executors`` are entry points of TVM's calling convention; everything else is a kernel: a C function of pointers
    that returns 0. Kernels are built side by side, and only if they are not in the cache. ``places`` says what of the
    network each computes. One more entry point, ``CALL_KERNEL``, calls a single kernel.

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
        with ThreadPoolExecutor(CORES) as pool:
            built = pool.map(
                lambda name: _kernel_object(name, kernels[name], target, cache, directory, places), kernels
            )
            objects = [*built, directory / "executors.o"]
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
    name: str, func: tirx.PrimFunc, target: Target, cache: KernelCache, directory: Path, places: Mapping[str, str]
) -> Path:
    path = directory / f"{name}.o"
    data = cache.get(name)
    if data is not None:
        path.write_bytes(data)
        return path
    try:
        module = tvm.get_global_func("target.build.llvm")(lower_kernel(name, func, target), target)
    except Exception as error:  # whatever TVM or LLVM say, they do not say of which layer
        raise BuildError(
            f"the kernel for {places.get(name, name)} cannot be built: {first_line(error)}. Write the model without "
            "this operator, and report the fault"
        ) from error
    module.write_to_file(str(path), "o")
    cache.put(name, path.read_bytes())
    return path


def lower_kernel(name: str, func: tirx.PrimFunc, target: Target) -> IRModule:
    """Schedule one kernel, and lower it to what LLVM takes."""
    scheduled = schedule_cpu(_without_offsets(func), traits_of(target)).with_attr("pock.symbol", name)
    mod = tirx.transform.BindTarget(target.with_host(target))(IRModule({name: scheduled}))
    with tvm.transform.PassContext():
        mod = tvm.transform.Sequential(LOWERING)(mod)
        mod = IRModule({var.name_hint: as_c_function(func) for var, func in mod.functions.items()})
        return tvm.transform.Sequential([tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()])(mod)


def _without_offsets(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The kernel with every argument at its pointer.

    What TVM writes as loops (sorting, scattering, scans) declares its buffers at unknown offsets, which only its own
    calling convention would fill in.
    """
    known = {
        param: tirx.decl_buffer(param.shape, str(param.ty.dtype), param.name, layout=None)
        for param in func.params
        if isinstance(param.elem_offset, tirx.Var)
    }
    return func.specialize(known) if known else func


LOWERING = [
    s_tir.transform.CanonicalizeLoop(),
    s_tir.transform.LowerInitBlock(),
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
    s_tir.transform.ConvertBlocksToOpaque(),
    s_tir.transform.CompactBufferAllocation(),
    s_tir.transform.LowerMatchBuffer(),
    s_tir.transform.StmtSimplify(),
    s_tir.transform.LowerOpaqueBlock(),
    tirx.transform.FlattenBuffer(),
    tirx.transform.BF16ComputeLegalize(),
    tirx.transform.NarrowDataType(32),
    s_tir.transform.LoopPartition(),
    tirx.transform.ConvertSSA(),  # an inlined block brings its names along
    tirx.transform.VectorizeLoop(True),
    tirx.transform.StorageRewrite(),
    s_tir.transform.HoistIfThenElse(),
    tirx.transform.UnrollLoop(),
    s_tir.transform.RenormalizeSplitPattern(),
    tirx.transform.StmtSimplify(),
    tirx.transform.RemoveNoOp(),
    prefetch_results,
    s_tir.transform.RewriteUnsafeSelect(),
    tirx.transform.CommonSubexprElim(),
]
"""From a schedule to loops over flat memory (as ``tvm.s_tir.pipeline.default_s_tir_pipeline``, for C functions)."""


def as_c_function(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A kernel as ``int name(pointer, …)``, in the place of TVM's packed calling convention.

    An executor calls a kernel thousands of times a second with tensors that are right by construction: there is nothing
    to unpack and nothing to check. (Stands where ``tirx.transform.MakePackedAPI`` does.)
    """
    pointers = [
        tirx.Var(f"{param.name}_ptr", tvm.ir.PointerType(tvm.ir.PrimType(str(param.ty.dtype)))) for param in func.params
    ]
    buffers = [tirx.DeclBuffer(param, data=pointer) for param, pointer in zip(func.params, pointers, strict=True)]
    body: tirx.Stmt = tirx.SeqStmt([*buffers, func.body])
    for key, value in (("device_type", DEVICE_TYPE_CPU), ("device_id", 0)):
        body = tirx.AttrStmt(tvm.ir.StringImm("default"), key, tirx.const(value, "int32"), body)
    # Behind the scope of the device: what the body allocates is freed at the end of that scope.
    body = tirx.SeqStmt([body, tirx.Return(tirx.const(0, "int32"))])
    raw = tirx.PrimFunc(pointers, body, ret_type=tvm.ir.PrimType("int32"), attrs=func.attrs)
    return raw.with_attrs({"global_symbol": func.attrs["pock.symbol"], "calling_conv": 1})
