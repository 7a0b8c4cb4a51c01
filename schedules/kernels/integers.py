"""Operators of TIR on integers, for which processors have instructions that TVM has no operator for.

Each has one exact meaning, whatever computes it. ``schedules/cpu/integers.py`` and ``schedules/cpu/dot.py`` lower them.
"""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.ir import _ffi_api

PURE = 1
"""``CallEffectKind`` of an operator without side effects (``tvm::tirx::CallEffectKind``)."""
SATURATE_INT16, SATURATE_UINT8 = "pock.saturate_int16", "pock.saturate_uint8"
MULTIPLY_HIGH, JOIN_BYTES, BYTE_OF = "pock.multiply_high", "pock.join_bytes", "pock.byte_of"
HIGH_BITS = 15
"""Bits that a high product of 16 bits drops."""


def operator(name: str, meaning: str, inputs: int) -> str:
    """Register an operator of TIR that computes each lane of a vector on its own, and return its name."""
    if name not in tvm.ir.Op.list_op_names():
        _ffi_api.RegisterOp(name, meaning)
        op = tvm.ir.Op.get(name)
        op.set_num_inputs(inputs)
        op.set_attr("TCallEffectKind", PURE)
        op.set_attr("TVectorizable", True)
        op.set_attr("TScriptPrinterName", name)
    return name


operator(SATURATE_INT16, "nearest int16 of an int32", 1)
operator(SATURATE_UINT8, "nearest uint8 of an int16", 1)
operator(MULTIPLY_HIGH, "product of two int16, shifted right by 15 and rounded, halves up", 2)
operator(JOIN_BYTES, "word of 32 bits of four uint8, the lowest first", 4)
operator(BYTE_OF, "int16 of a byte of a word of 32 bits, and its number, a constant", 2)


def saturated_int16(value: tirx.Expr) -> tirx.Expr:
    """Return the int16 nearest to an int32."""
    return tirx.call_intrin("int16", SATURATE_INT16, value)


def saturated_uint8(value: tirx.Expr) -> tirx.Expr:
    """Return the uint8 nearest to an int16."""
    return tirx.call_intrin("uint8", SATURATE_UINT8, value)


def multiplied_high(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    """Return ``(left * right + 2^14) >> 15`` of two int16, an int16. They must not both be -2^15."""
    return tirx.call_intrin("int16", MULTIPLY_HIGH, left, right)


def joined(low: tirx.Expr, *others: tirx.Expr) -> tirx.Expr:
    """Return the int32 whose bytes are four uint8, the lowest first."""
    return tirx.call_intrin("int32", JOIN_BYTES, low, *others)


def byte_of(word: tirx.Expr, number: int | tirx.Expr) -> tirx.Expr:
    """Return a byte of an int32, the lowest first, as an int16."""
    place = tirx.const(number, "int32") if isinstance(number, int) else number
    return tirx.call_intrin("int16", BYTE_OF, word, place)
