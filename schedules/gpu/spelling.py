"""Names and numbers as every dialect takes them: TVM's generators print both as they are."""

from __future__ import annotations

import math
import re
import struct

import tvm_ffi
from tvm import tirx

NO_NAME = re.compile(r"\W+|_{2,}|_+$")
INTEGERS = {"float32": ("uint32", "<f"), "float64": ("uint64", "<d")}
"""The integer type as wide as a floating-point type, and this type's format in ``struct``."""


def with_names(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Give variables names that every dialect takes: those of the network's values hold dots, and may begin with a
    digit. Start each operand at its pointer: TVM's kernels that are written as loops (sort, scatter, scan) declare
    buffers with symbolic offsets."""
    buffers = {
        param: tirx.decl_buffer(param.shape, str(param.ty.dtype), param.name, layout=None) for param in func.params
    }
    renamed: dict[tirx.Var, tirx.Var] = {}

    def rename(var: tirx.Var, inner: tvm_ffi.StructuralMutator) -> tirx.Var:
        if var not in renamed:
            renamed[var] = tirx.Var(f"v_{NO_NAME.sub('_', var.name)}", inner.mutate(var.ty))
        return renamed[var]

    return tvm_ffi.structural_mutate(func.specialize(buffers), (tirx.Var, rename))


def with_bits(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Write constants as their bits where seven digits, which is what most generators print, are not exact."""

    def exact(node: tirx.FloatImm) -> tirx.Expr:
        dtype, value = str(node.ty.dtype), float(node.value)
        if dtype not in INTEGERS or not math.isfinite(value):
            return node
        integer, real = INTEGERS[dtype]
        bits = struct.pack(real, value)
        if bits == struct.pack(real, float(f"{value:e}")):
            return node
        return tirx.reinterpret(dtype, tirx.const(int.from_bytes(bits, "little"), integer))

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.FloatImm, exact)))
