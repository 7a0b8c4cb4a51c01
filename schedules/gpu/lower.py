"""Lowering of scheduled kernels to device functions, and their launches.

A kernel that passes chose may become several device functions: one per loop nest. What they hand on to each other lies
in the kernel's scratch, which is its last operand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import tvm
from tvm import IRModule, s_tir, tirx
from tvm.target import Target

from ..kernels import GUARDED
from .text.conditions import with_plain_conditions
from .text.spelling import with_names
from .text.words import with_words
from .traits import has_matrix_units

FLAG = -1
"""Operand of a guarded device function, its last: int32 [1], 0 until a check fails."""
ALIGNMENT = 256
"""Alignment of what lies in scratch, in bytes: what every device takes as the offset of a binding."""


@dataclass(frozen=True)
class Launch:
    """Launch of one device function."""

    symbol: str
    grid: tuple[int, ...]
    """Blocks along x, y and z."""
    block: tuple[int, ...]
    """Threads of a block along x, y and z."""
    operands: tuple[tuple[int, int], ...]
    """Operand of the kernel and offset in it, in bytes, of each argument."""


@functools.lru_cache(64)  # a kernel's check, scratch and code ask for it
def lower(func: tirx.PrimFunc, target: Target) -> IRModule:
    """Lower a scheduled kernel to its device functions, and under its ``global_symbol`` the host function that
    launches them."""
    symbol = func.attrs["global_symbol"]
    if GUARDED in func.attrs:  # it has two views of what it updates
        func = func.with_attr("tirx.noalias", False)
    dialect = target.kind.name
    named = with_names(func if has_matrix_units(target) else with_words(func, dialect))
    mod = tirx.transform.BindTarget(target.with_host(Target("llvm")))(
        IRModule({symbol: with_plain_conditions(named, dialect)})
    )
    with tvm.transform.PassContext():
        mod = tvm.transform.Sequential(LOWERING)(mod)
    if GUARDED in func.attrs:
        mod = IRModule(
            {name: each if name.name_hint == symbol else guarded(each) for name, each in mod.functions.items()}
        )
    return mod


LOWERING = [
    s_tir.transform.CanonicalizeLoop(),
    s_tir.transform.LowerCrossThreadReduction(),
    s_tir.transform.LowerInitBlock(),
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
    s_tir.transform.ConvertBlocksToOpaque(),
    s_tir.transform.LiftThreadBinding(),
    s_tir.transform.ManifestSharedMemoryLocalStage(),
    s_tir.transform.CompactBufferAllocation(),
    s_tir.transform.LowerAutoCopy(),
    s_tir.transform.UnifyThreadBinding(),
    s_tir.transform.LowerMatchBuffer(),
    s_tir.transform.StmtSimplify(),
    s_tir.transform.InjectSoftwarePipeline(),
    s_tir.transform.LowerOpaqueBlock(),
    tirx.transform.FlattenBuffer(),
    tirx.transform.NarrowDataType(32),
    s_tir.transform.LoopPartition(),
    tirx.transform.ConvertSSA(),  # inlining a block duplicates its variables
    tirx.transform.VectorizeLoop(True),
    s_tir.transform.InjectVirtualThread(),
    s_tir.transform.InjectDoubleBuffer(),
    tirx.transform.StorageRewrite(),
    s_tir.transform.HoistIfThenElse(),
    tirx.transform.UnrollLoop(),
    s_tir.transform.RenormalizeSplitPattern(),
    tirx.transform.StmtSimplify(),
    tirx.transform.RemoveNoOp(),
    s_tir.transform.RewriteUnsafeSelect(),
    tirx.transform.CommonSubexprElim(),
    tirx.transform.VerifyMemory(),
    tirx.transform.AnnotateEntryFunc(),
    s_tir.transform.ThreadSync("shared"),
    s_tir.transform.ThreadSync("shared.dyn"),
    s_tir.transform.ThreadSync("warp"),
    s_tir.transform.InferFragment(),
    s_tir.transform.LowerThreadAllreduce(),
    s_tir.transform.MergeSharedMemoryAllocations(),
    tirx.transform.SplitHostDevice(),
]
"""Passes from a schedule to device functions over flat memory: ``tvm.s_tir.pipeline.default_s_tir_pipeline``."""


def guarded(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Let a device function do nothing if its new last argument, int32 [1], is not 0."""
    pointer = tirx.Var("failed_ptr", func.params[0].ty.__class__(tvm.ir.PrimType("int32"), "global"))
    flag = tirx.decl_buffer((1,), "int32", "failed", layout=None)

    def wrapped(stmt: tirx.Stmt) -> tirx.Stmt:
        if isinstance(stmt, tirx.AttrStmt):
            return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, wrapped(stmt.body))
        if isinstance(stmt, tirx.SeqStmt) and isinstance(stmt.seq[0], tirx.DeclBuffer | tirx.AllocBuffer):
            rest = stmt.seq[1:]
            return tirx.SeqStmt([stmt.seq[0], wrapped(rest[0] if len(rest) == 1 else tirx.SeqStmt(rest))])
        return tirx.IfThenElse(flag[0] == 0, stmt, None)

    body = tirx.SeqStmt([tirx.DeclBuffer(flag, data=pointer), wrapped(func.body)])
    changed = tirx.PrimFunc([*func.params, pointer], body, func.ret_type, func.attrs)
    return changed.with_attr("tirx.noalias", False)  # it has two views of what it updates


def scratch_of(mod: IRModule) -> int:
    """Return the bytes of scratch that a lowered kernel takes."""
    return _scratch(_host(mod))[1]


def launches_of(mod: IRModule) -> list[Launch]:
    """Return the launches of a lowered kernel, in order."""
    host = _host(mod)
    offsets, _ = _scratch(host)
    places = {param: (number, 0) for number, param in enumerate(host.params)}
    places |= {buffer: (len(host.params), offset) for buffer, offset in offsets.items()}
    found = []
    for stmt in _statements(host.body):
        if isinstance(stmt, tirx.DeclBuffer):
            places[stmt.buffer] = places[stmt.data.args[0]]
        elif isinstance(stmt, tirx.Evaluate):
            found.append(_launch(mod, stmt.value, places))
    return found


def _launch(mod: IRModule, call: tvm.ir.Call, places: dict[tirx.Var, tuple[int, int]]) -> Launch:
    axes = [str(axis) for axis in call.attrs.launch_params]
    symbol, *arguments = call.args
    extents = dict(zip(axes, map(int, arguments[len(arguments) - len(axes) :]), strict=True))
    operands = [places[argument.args[0]] for argument in arguments[: len(arguments) - len(axes)]]
    if len(mod[symbol.value].params) > len(operands):
        operands.append((FLAG, 0))
    grid, block = (tuple(extents.get(f"{kind}Idx.{axis}", 1) for axis in "xyz") for kind in ("block", "thread"))
    return Launch(symbol.value, grid, block, tuple(operands))


def _scratch(host: tirx.PrimFunc) -> tuple[dict[tirx.Var, int], int]:
    """Return the offsets of what a host function allocates, and their size together, in bytes."""
    offsets: dict[tirx.Var, int] = {}
    end = 0
    for stmt in _statements(host.body):
        if isinstance(stmt, tirx.AllocBuffer):
            offsets[stmt.buffer] = end
            end += -(-_bytes(stmt.buffer) // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _host(mod: IRModule) -> tirx.PrimFunc:
    (host,) = (func for func in mod.functions.values() if "tirx.is_entry_func" in func.attrs)
    return host


def _statements(stmt: tirx.Stmt) -> Iterator[tirx.Stmt]:
    """Yield the statements of a host function, in order."""
    if isinstance(stmt, tirx.SeqStmt):
        for each in stmt.seq:
            yield from _statements(each)
    elif isinstance(stmt, tirx.AttrStmt):
        yield from _statements(stmt.body)
    else:
        yield stmt


def sizes_of(mod: IRModule) -> list[int]:
    """Return the bytes of a lowered kernel's operands, its scratch last; 0 where any number of them will do."""
    host = _host(mod)
    scratch = _scratch(host)[1]
    return [*map(_bytes, host.params), *[scratch] * (scratch > 0)]


def _bytes(buffer: tirx.Var) -> int:
    """Return the bytes of a buffer; 0 if its extent is not constant."""
    if not all(isinstance(extent, tirx.IntImm) for extent in buffer.shape):
        return 0
    return math.prod(int(extent) for extent in buffer.shape) * tvm.DataType(buffer.dtype).itemsize
