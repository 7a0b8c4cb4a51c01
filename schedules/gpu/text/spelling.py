"""Names and numbers as every dialect takes them: TVM's generators print both as they are."""

from __future__ import annotations

import math
import re
import struct
from typing import Any

import tvm_ffi
from tvm import DataType, ir, tirx

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


def with_wide_constants(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Write infinity and NaN of other types as those of float32: TVM's texts know no names of them in 16 bits, and in
    OpenCL call them float32 where a double is meant."""

    def wide(node: tirx.FloatImm) -> tirx.Expr:
        is_named = math.isfinite(node.value) or node.ty.dtype.bits == 32
        return node if is_named else tirx.Cast(str(node.ty.dtype), tirx.const(node.value, "float32"))

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.FloatImm, wide)))


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


def with_plain_functions(func: tirx.PrimFunc, dialect: str) -> tirx.PrimFunc:
    """Call functions by the names that a dialect other than CUDA has for them. Where TVM has no rule of a dialect's own
    it writes C's, which end in ``f`` (``tirx/op`` and ``src/target/intrin_rule.cc``)."""

    def plain(node: ir.Call, inner: Any) -> tirx.Expr:
        new = inner.default_mutate(node)
        if getattr(node.op, "name", "") != "tirx.call_pure_extern":
            return new
        dtype, name, operands = str(node.ty.dtype), str(new.args[0].value), new.args[1:]
        if name == "log10f" and dialect == "webgpu":  # WGSL has none
            return tirx.call_pure_extern(dtype, "log", *operands) * tirx.const(1 / math.log(10), dtype)
        if name == "nearbyint" and dialect == "metal":
            return tirx.call_pure_extern(dtype, "rint", *operands)
        return tirx.call_pure_extern(dtype, name[:-1], *operands) if name in SUFFIXED else new

    return func.with_body(tvm_ffi.structural_mutate(func.body, (ir.Call, plain)))


SUFFIXED = frozenset(
    f"{name}f" for name in ("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "log10", "tan")
)
"""C's functions of float32 that TVM has no other names for."""


def with_bit_casts(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Read the bits of values by OpenCL's ``as_uint`` and the like (OpenCL C 1.2, section 6.2.4). TVM's text reads them
    through a pointer to another type, which a compiler takes for something else's memory, and not of every value."""

    def cast(node: ir.Call, inner: Any) -> tirx.Expr:
        new = inner.default_mutate(node)
        if getattr(node.op, "name", "") != "tirx.reinterpret":
            return new
        dtype = DataType(str(node.ty.dtype))
        lanes = str(dtype.lanes) if dtype.lanes > 1 else ""
        return tirx.call_extern(str(dtype), f"as_{C_TYPES[str(dtype).partition('x')[0]]}{lanes}", new.args[0])

    return func.with_body(tvm_ffi.structural_mutate(func.body, (ir.Call, cast)))


C_TYPES = {
    "float16": "half", "float32": "float", "float64": "double",
    **{f"{sign}int{bits}": f"{sign[:1]}{name}" for sign in ("", "u") for bits, name in
       ((8, "char"), (16, "short"), (32, "int"), (64, "long"))},
}  # fmt: skip
"""OpenCL's names of types."""
