"""Phase 10: kernels and executors to one shared library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tvm
from tvm import IRModule, s_tir, tirx
from tvm.support import cc
from tvm.target import Target

from relay_passes.lower_to_executor import symbol_of
from schedules.cpu import schedule_cpu, traits_of

from .targets import linker_for

DEVICE_TYPE_CPU = 1


def build_library(mod: IRModule, executors: list[str], target: Target, directory: Path) -> Path:
    """Compile the PrimFuncs of a module into a shared library.

    ``executors`` are entry points of TVM's calling convention; everything else is a kernel: a C function of pointers
    that returns 0. Returns the path of the library, in ``directory``.
    """
    kernels = {var.name_hint: func for var, func in mod.functions.items() if var.name_hint not in executors}
    entries = {name: mod[name] for name in executors}
    objects = [directory / "kernels.o", directory / "executors.o"]
    _write_object(_lowered_kernels(kernels, target), target, objects[0])
    tirx.build(IRModule(entries), target=target).write_to_file(str(objects[1]), "o")
    library = directory / "program.so"
    cc.create_shared(str(library), [str(path) for path in objects], cc=linker_for(target))
    return library


def _lowered_kernels(kernels: Mapping[str, tirx.PrimFunc], target: Target) -> IRModule:
    traits = traits_of(target)
    scheduled = {name: schedule_cpu(func, traits) for name, func in kernels.items()}
    mod = IRModule({name: func.with_attr("pock.symbol", symbol_of(name)) for name, func in scheduled.items()})
    mod = tirx.transform.BindTarget(target.with_host(target))(mod)
    with tvm.transform.PassContext():
        mod = tvm.transform.Sequential(
            [
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
                s_tir.transform.RewriteUnsafeSelect(),
                tirx.transform.CommonSubexprElim(),
            ]
        )(mod)
        mod = IRModule({var.name_hint: as_c_function(func) for var, func in mod.functions.items()})
        return tvm.transform.Sequential([tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()])(mod)


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


def _write_object(mod: IRModule, target: Target, path: Path) -> None:
    tvm.get_global_func("target.build.llvm")(mod, target).write_to_file(str(path), "o")
