"""Saturating, packing and multiplying of small integers by HVX's instructions.

LLVM takes every vector of these as 32 words. ``vpack`` leaves the lanes of its second operand, then those of the first.
"""

from __future__ import annotations

from tvm import tirx

from ..kernels.integers import SATURATE_INT16
from ..kernels.quantized import WORD
from .hexagon import LANES, VECTOR_BYTES, full
from .stored_together import Packing

HALVES = 2 * LANES
"""int16 of a vector."""
WORDS = f"int32x{LANES}"
PACK_WORDS, PACK_HALVES = "llvm.hexagon.V6.vpackwh.sat.128B", "llvm.hexagon.V6.vpackhub.sat.128B"
"""Saturate the words of two vectors to int16, or their int16 to uint8."""
MULTIPLY_HIGH = "llvm.hexagon.V6.vmpyhvsrs.128B"
"""``(a * b * 2 + 2^15) >> 16`` of int16, saturated."""


def packed(name: str, low: tirx.Expr, high: tirx.Expr) -> tirx.Expr:
    """Saturate two vectors to half of their bits: those of ``low``, then those of ``high``."""
    if name == SATURATE_INT16:
        halves = tirx.call_llvm_pure_intrin(WORDS, PACK_WORDS, full(high), full(low))
        return tirx.reinterpret(f"int16x{HALVES}", halves)
    operands = [tirx.reinterpret(WORDS, each) for each in (high, low)]
    return tirx.reinterpret(f"uint8x{VECTOR_BYTES}", tirx.call_llvm_pure_intrin(WORDS, PACK_HALVES, *operands))


def multiplied_high(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    """Multiply two vectors of int16, and round the high halves."""
    operands = [tirx.reinterpret(WORDS, each) for each in (left, right)]
    return tirx.reinterpret(f"int16x{HALVES}", tirx.call_llvm_pure_intrin(WORDS, MULTIPLY_HIGH, *operands))


PACKINGS = [Packing(lanes, LANES, packed, by_words=True) for lanes in range(2 * WORD, LANES + 1, WORD)]
"""How vectors of words are packed, by their lanes."""
