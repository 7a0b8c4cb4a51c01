"""Lowering of scheduled kernels to C functions for LLVM."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tvm
import tvm_ffi
from tvm import IRModule, s_tir, tirx
from tvm.target import Target

from . import hexagon
from .dot import lower_dot
from .integers import lower_integers
from .masks import PREDICATION, mask_vectors, may_mask
from .prefetch import part_of, prefetch_tiles
from .prefetch_blocks import prefetch_blocks
from .scratch import ALIGNMENT, place_scratch, with_tiles_on_stack
from .tile_cost import vector_sizes
from .traits import traits_of

DEVICE_TYPE_CPU = 1


@functools.lru_cache(512)  # the scratch of all kernels of a program is asked for before their code
def lower(func: tirx.PrimFunc, target: Target, workers: int) -> IRModule:
    """Lower a scheduled kernel to a module for LLVM, with the function ``int <global_symbol>(pointer, …)``.

    A kernel that needs scratch takes its address last. :func:`scratch_of` says how many bytes that is
    for ``workers`` parallel workers.
    """
    symbol = func.attrs["global_symbol"]
    with tvm.transform.PassContext():
        mod = IRModule({symbol: as_c_function(_flat(func, target), workers)})
        return tvm.transform.Sequential([tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()])(mod)


def loops(func: tirx.PrimFunc, target: Target) -> IRModule:
    """Lower a scheduled kernel to flat loops, under its ``global_symbol``, with register tiles on the stack.

    Other buffers of its own stay allocations, which TVM's runtime serves.
    """
    flat = _flat(func, target)
    return IRModule({func.attrs["global_symbol"]: flat.with_body(with_tiles_on_stack(flat.body))})


def _flat(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    mod = tirx.transform.BindTarget(target.with_host(target))(IRModule({"main": _without_offsets(func)}))
    with tvm.transform.PassContext():
        return tvm.transform.Sequential(LOWERING)(mod)["main"]


def _without_offsets(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Drop the element offsets of the arguments: each starts at its pointer.

    TVM's kernels written as loops (sort, scatter, scan) declare buffers with symbolic offsets, which only TVM's packed
    calling convention binds.
    """
    known = {
        param: tirx.decl_buffer(param.shape, str(param.ty.dtype), param.name, layout=None)
        for param in func.params
        if isinstance(param.elem_offset, tirx.Var)
    }
    return func.specialize(known) if known else func


@tirx.transform.prim_func_pass(opt_level=0, name="pock.Vectorize")
def vectorize(func: tirx.PrimFunc, _mod: IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Vectorise the loops that a schedule marked, with as many lanes as they have iterations.

    For a target with scalable vectors (SVE, RISC-V's) TVM's pass would make loops over them, which no register tile
    holds. It does not see the target here.
    """
    with tvm.transform.PassContext(config=PREDICATION if may_mask(func) else {}):
        mod = tirx.transform.VectorizeLoop(True)(IRModule({"main": func.without_attr("target")}))
    return mod["main"].with_attr("target", func.attrs["target"])


@tirx.transform.prim_func_pass(opt_level=0, name="pock.SplitVectors")
def split_vectors(func: tirx.PrimFunc, _mod: IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Split the loops that will be vectors of several registers, or of even lanes that are no power of two: into whole
    registers, and powers of two behind them. LLVM keeps the vectors of other lengths in memory, since they do not fill
    what it allocates for them.
    """
    lanes = traits_of(func.attrs["target"]).lanes

    def split(loop: tirx.For) -> tirx.Stmt:
        extent = int(loop.extent) if isinstance(loop.extent, tirx.IntImm) else 0
        if loop.kind != tirx.ForKind.VECTORIZED or extent % 2 or extent & (extent - 1) == 0 or extent % lanes == 0:
            return loop
        first, parts = 0, []
        for size in vector_sizes(extent, lanes):
            parts.append(part_of(loop, first, first + size))
            first += size
        return tirx.SeqStmt(parts)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, split)))


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
    split_vectors,
    mask_vectors,
    tirx.transform.ConvertSSA(),  # inlining a block duplicates its variables, as do the parts of a vector
    vectorize,
    lower_dot,
    tirx.transform.StorageRewrite(),
    s_tir.transform.HoistIfThenElse(),
    tirx.transform.UnrollLoop(),
    s_tir.transform.RenormalizeSplitPattern(),
    tirx.transform.StmtSimplify(),
    tirx.transform.RemoveNoOp(),
    lower_integers,  # once loops over stores are unrolled
    prefetch_blocks,
    prefetch_tiles,
    tirx.transform.ConvertSSA(),  # as do the parts of a loop
    s_tir.transform.RewriteUnsafeSelect(),
    tirx.transform.CommonSubexprElim(),
]
"""Passes from a schedule to loops over flat memory: ``tvm.s_tir.pipeline.default_s_tir_pipeline``, for C functions."""


def as_c_function(func: tirx.PrimFunc, workers: int) -> tirx.PrimFunc:
    """Give a kernel the signature ``int name(pointer, …)`` instead of TVM's packed calling convention.

    An executor calls kernels thousands of times a second, with tensors of known shape and dtype: nothing needs
    unpacking or checking. Replaces ``tirx.transform.MakePackedAPI``.
    """
    pointers = [
        tirx.Var(f"{param.name}_ptr", tvm.ir.PointerType(tvm.ir.PrimType(str(param.ty.dtype)))) for param in func.params
    ]
    scratch = tirx.Var("scratch_ptr", tvm.ir.PointerType(tvm.ir.PrimType("uint8")))
    addresses: Sequence[tirx.Expr] = pointers
    start, alignment = scratch, ALIGNMENT
    if hexagon.names_vectors(func):
        alignments = hexagon.operand_alignments(func)
        addresses = [hexagon.aligned(*each) for each in zip(pointers, alignments, strict=True)]
        start, alignment = hexagon.aligned(scratch, hexagon.VECTOR_BYTES), hexagon.VECTOR_BYTES
    buffers = [tirx.DeclBuffer(param, data=address) for param, address in zip(func.params, addresses, strict=True)]
    placed, size = place_scratch(func.body, start, workers, alignment)
    body: tirx.Stmt = tirx.SeqStmt([*buffers, placed])
    for key, value in (("device_type", DEVICE_TYPE_CPU), ("device_id", 0)):
        body = tirx.AttrStmt(tvm.ir.StringImm("default"), key, tirx.const(value, "int32"), body)
    # Return after the device scope, at whose end the body's allocations are freed.
    body = tirx.SeqStmt([body, tirx.Return(tirx.const(0, "int32"))])
    params = [*pointers, scratch] if size else pointers
    raw = tirx.PrimFunc(params, body, ret_type=tvm.ir.PrimType("int32"), attrs=func.attrs)
    return raw.with_attr("calling_conv", 1).with_attr(SCRATCH, size)


def object_of(mod: IRModule, target: Target) -> bytes:
    """Return the object file of a lowered kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        tvm.get_global_func("target.build.llvm")(mod, target).write_to_file(str(path), "o")
        return path.read_bytes()


def scratch_of(mod: IRModule) -> int:
    """Return the bytes of scratch that a lowered kernel takes."""
    (func,) = mod.functions.values()
    return int(func.attrs[SCRATCH])


SCRATCH = "scratch_bytes"
