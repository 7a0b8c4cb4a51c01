"""Numbers of 16 bits as words, which every dialect has, where devices need not have the numbers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import tvm_ffi
from tvm import ir, tirx

WORD, WIDE = "uint16", "float32"
TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
BUFFER = tirx.decl_buffer((1,), WORD)


def with_words(func: tirx.PrimFunc, dialect: str) -> tirx.PrimFunc:
    """Store numbers of 16 bits as uint16, and write casts from and to float32 as operations on bits.

    A cast rounds to the nearest, ties to even, and keeps NaN. TVM's own for bfloat16 (``BF16StorageLegalize``) carries
    the mantissa of a NaN whose bits are all set, as GPUs make it, into the sign: the result is -0. Nor does it see
    casts in bindings, and ``BF16ComputeLegalize`` drops a rounding that is widened again. OpenCL devices have float16
    as an extension.
    """
    formats = {"bfloat16": (_from_bfloat16, _to_bfloat16)}
    if dialect == "opencl":
        formats["float16"] = (_from_float16, _to_float16)
    renewed: dict[tirx.Var, tirx.Var] = {}

    def rounds(expr: tirx.Expr) -> bool:
        return isinstance(expr, tirx.Cast) and _dtype(expr) in formats and _dtype(expr.value) == WIDE

    def rounded(value: tirx.Expr, dtype: str) -> tirx.Expr:
        return formats[dtype][1](value).astype(WORD)

    def renew(var: tirx.Var, _inner: Any) -> tirx.Var:
        if _dtype(var) not in formats:
            return var
        if var not in renewed:
            is_buffer = isinstance(var.ty, type(BUFFER.ty))
            renewed[var] = (
                tirx.decl_buffer(var.shape, WORD, var.name, scope=var.scope(), layout=None)
                if is_buffer
                else tirx.Var(var.name, WORD)
            )
        return renewed[var]

    def load(node: ir.TensorLoad, inner: Any) -> tirx.Expr:
        return tirx.BufferLoad(renew(node.source, inner), [inner.mutate(index) for index in node.indices])

    def store(node: tirx.BufferStore, inner: Any) -> tirx.Stmt:
        indices = [inner.mutate(index) for index in node.indices]
        if not rounds(node.value):
            return tirx.BufferStore(renew(node.buffer, inner), inner.mutate(node.value), indices)
        value = tirx.Var("value", WIDE)  # may be a long expression: computed once
        stored = tirx.BufferStore(renew(node.buffer, inner), rounded(value, _dtype(node.value)), indices)
        return tirx.SeqStmt([tirx.Bind(value, inner.mutate(node.value.value)), stored])

    def cast(node: tirx.Cast, inner: Any) -> tirx.Expr:
        value, dtype = inner.mutate(node.value), _dtype(node)
        if _dtype(node.value) in formats:
            value = formats[_dtype(node.value)][0](value.astype("uint32"))
        if dtype in formats:
            return rounded(value.astype(WIDE), dtype)
        return value.astype(dtype)

    def select(node: tirx.Select, inner: Any) -> tirx.Expr:
        return tirx.Select(*map(inner.mutate, (node.condition, node.true_value, node.false_value)))

    def call(node: ir.Call, inner: Any) -> tirx.Expr:
        if _dtype(node) in formats and node.op.name == "prim.if_then_else":
            return tirx.if_then_else(*map(inner.mutate, node.args))
        return inner.default_mutate(node)

    def number(node: tirx.FloatImm, _inner: Any) -> tirx.Expr:
        dtype = _dtype(node)
        if dtype not in formats:
            return node
        return tirx.const(int(np.array(node.value, TYPES[dtype]).view(WORD)), WORD)  # no text reads a constant's bits

    callbacks = [
        (tirx.Var, renew),
        (ir.TensorLoad, load),
        (tirx.BufferStore, store),
        (tirx.Cast, cast),
        (tirx.Select, select),
        (ir.Call, call),
        (tirx.FloatImm, number),
    ]
    body = tvm_ffi.structural_mutate(func.body, callbacks)
    return tirx.PrimFunc([renew(param, None) for param in func.params], body, func.ret_type, func.attrs)


def _from_bfloat16(word: tirx.Expr) -> tirx.Expr:
    """Return the float32 of which a word is the upper half."""
    return _number(word << _word(16))


def _to_bfloat16(value: tirx.Expr) -> tirx.Expr:
    bits = _bits(value)
    is_nan = (bits & _word(0x7FFFFFFF)) > _word(0x7F800000)
    return tirx.Select(is_nan, _word(0x7FC0), _shifted(bits, 16))


def _from_float16(word: tirx.Expr) -> tirx.Expr:
    """Return a float16 as a float32, whose exponent is 112 larger. Subnormal numbers are multiples of 2^-24."""
    magnitude = word & _word(0x7FFF)
    normal = (magnitude << _word(13)) + _word(112 << 23)
    special = (magnitude << _word(13)) | _word(0x7F800000)  # infinity, NaN
    small = _bits(magnitude.astype(WIDE) * tirx.const(2.0**-24, WIDE))
    bits = tirx.Select(magnitude >= _word(0x7C00), special, tirx.Select(magnitude < _word(0x0400), small, normal))
    return _number(bits | ((word & _word(0x8000)) << _word(16)))


def _to_float16(value: tirx.Expr) -> tirx.Expr:
    """Round a float32. Where the result is subnormal, adding 0.5 leaves its multiple of 2^-24 in the last bits."""
    bits = _bits(value)
    magnitude = bits & _word(0x7FFFFFFF)
    normal = _shifted(magnitude - _word(112 << 23), 13)
    small = _bits(_number(magnitude) + tirx.const(0.5, WIDE)) - _word(0x3F000000)
    special = tirx.Select(magnitude > _word(0x7F800000), _word(0x7E00), _word(0x7C00))  # NaN, infinity
    finite = tirx.Select(magnitude < _word(0x38800000), small, normal)  # below 2^-14
    rounded = tirx.Select(magnitude >= _word(0x477FF000), special, finite)  # from 65520
    return rounded | ((bits >> _word(16)) & _word(0x8000))


def _shifted(bits: tirx.Expr, count: int) -> tirx.Expr:
    """Return bits without the last ``count``, to the nearest, ties to even."""
    odd = (bits >> _word(count)) & _word(1)
    return (bits + (odd + _word((1 << (count - 1)) - 1))) >> _word(count)


def _bits(value: tirx.Expr) -> tirx.Expr:
    return tirx.reinterpret("uint32", value)


def _number(bits: tirx.Expr) -> tirx.Expr:
    return tirx.reinterpret(WIDE, bits)


def _word(value: int) -> tirx.IntImm:
    return tirx.const(value, "uint32")


def _dtype(expr: Any) -> str:
    return str(getattr(expr.ty, "dtype", ""))
