"""Saturating, packing and multiplying of small integers by HVX's instructions.

LLVM takes every vector of these as 32 words. ``vpack`` leaves the lanes of its second operand, then those of the first.
"""

from __future__ import annotations

import tvm_ffi
from tvm import ir, tirx

from ..kernels.integers import BYTE_OF, JOIN_BYTES, SATURATE_INT16, SATURATE_UINT8
from ..kernels.integers import MULTIPLY_HIGH as HIGH_PRODUCT
from ..kernels.quantized import WORD
from .hexagon import LANES, VECTOR_BYTES, full
from .stored_together import MAPPED, Packing, name_of
from .vectors import lanes_of

HALVES = 2 * LANES
"""int16 of a vector."""
WORDS = f"int32x{LANES}"
PACK_WORDS, PACK_HALVES = "llvm.hexagon.V6.vpackwh.sat.128B", "llvm.hexagon.V6.vpackhub.sat.128B"
"""Saturate the words of two vectors to int16, or their int16 to uint8."""
SATURATE_WORDS, SATURATE_HALVES = "llvm.hexagon.V6.vsatwh.128B", "llvm.hexagon.V6.vsathub.128B"
"""The same, lane by lane: each of the first vector behind one of the second. No permutation is in them, so that a
packet takes several."""
SHUFFLE_BYTES = "llvm.hexagon.V6.vshuffeb.128B", "llvm.hexagon.V6.vshuffob.128B"
SHUFFLE_HALVES = "llvm.hexagon.V6.vshufeh.128B", "llvm.hexagon.V6.vshufoh.128B"
"""Even bytes, or halves, of two vectors, lane by lane: each of the first vector behind one of the second; odd ones."""
SHIFT_BY_NUMBER = "llvm.hexagon.V6.vasrw.128B"
MULTIPLY_HIGH = "llvm.hexagon.V6.vmpyhvsrs.128B"
MULTIPLY_HIGH_BY_NUMBERS = "llvm.hexagon.V6.vmpyhsrs.128B"
"""``(a * b * 2 + 2^15) >> 16`` of int16, saturated: of two vectors, or by two numbers for even and odd lanes."""


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


def words(node: ir.Call) -> tirx.Expr:
    """Join the saturated bytes of four vectors of words, by instructions on all four at once, or bytes of words, by
    shuffles within lanes; any other call is returned unchanged."""
    if name_of(node) != JOIN_BYTES or lanes_of(node) != LANES:
        return node
    if all(isinstance(each, tirx.Cast) and name_of(each.value) == BYTE_OF for each in node.args):
        return _shuffled(node, [_place(each.value) for each in node.args])
    if any(name_of(each) != SATURATE_UINT8 for each in node.args):
        return node
    first, second, third, fourth = (each.args[0] for each in node.args)
    low, high = _halves(first, third), _halves(second, fourth)
    if low is None or high is None:
        return node
    operands = [tirx.reinterpret(WORDS, each) for each in (high, low)]
    return tirx.call_llvm_pure_intrin(WORDS, SATURATE_HALVES, *operands)


Place = tuple[tirx.Expr, int]
"""Words, and the number of a byte of each."""


def _place(call: ir.Call) -> Place:
    word, number = call.args
    return word, int(number.value if isinstance(number, tirx.Broadcast) else number)


def _shuffled(node: ir.Call, places: list[Place]) -> tirx.Expr:
    """Join bytes of words that even or odd places of bytes, and of halves, bring together; else return ``node``.

    No permutation across lanes is in these, so that a packet takes several.
    """
    (first, a), (second, b), (third, c), (fourth, d) = places
    same = tvm_ffi.structural_equal
    if a != b:
        return node
    low = _of_two(SHUFFLE_BYTES[a % 2], second, first)
    if same(first, third) and same(second, fourth) and (a, b, c, d) == (a, a, a + 2, a + 2) and a < 2:
        return low
    if c == d == a:
        high = _of_two(SHUFFLE_BYTES[a % 2], fourth, third)
    elif same(third, fourth) and (c, d) == (a // 2 * 2, a // 2 * 2 + 1):
        high = third
    else:
        return node
    return _of_two(SHUFFLE_HALVES[a // 2], high, low)


def _of_two(name: str, high: tirx.Expr, low: tirx.Expr) -> tirx.Expr:
    return tirx.call_llvm_pure_intrin(WORDS, name, high, low)


def _halves(low: tirx.Expr, high: tirx.Expr) -> tirx.Expr | None:
    """Return two vectors of int16 as one, lane by lane: ``low``, then ``high``."""
    kind, names = f"int16x{HALVES}", {name_of(low), name_of(high)}
    if names == {SATURATE_INT16}:
        operands = [_shifted(each.args[0]) for each in (high, low)]
        return tirx.reinterpret(kind, tirx.call_llvm_pure_intrin(WORDS, SATURATE_WORDS, *operands))
    if names == {HIGH_PRODUCT}:
        left, numbers = _halves(low.args[0], high.args[0]), _numbers(low.args[1], high.args[1])
        if left is None or numbers is None:
            return None
        given = tirx.reinterpret(WORDS, left)
        return tirx.reinterpret(kind, tirx.call_llvm_pure_intrin(WORDS, MULTIPLY_HIGH_BY_NUMBERS, given, numbers))
    if names == {BYTE_OF} and tvm_ffi.structural_equal(low.args[0], high.args[0]):
        place = low.args[1].value
        word = low.args[0] >> tirx.Broadcast(place * 8, LANES)
        return tirx.reinterpret(kind, word & tirx.Broadcast(tirx.const(0x00FF00FF, "int32"), LANES))
    if isinstance(low, MAPPED) and type(low) is type(high):
        left, right = _halves(low.a, high.a), _halves(low.b, high.b)
        return None if left is None or right is None else type(low)(left, right)
    if isinstance(low, tirx.Broadcast) and tvm_ffi.structural_equal(low, high):
        return tirx.Broadcast(low.value, HALVES)
    return None


def _shifted(words: tirx.Expr) -> tirx.Expr:
    """Return words that one number shifts, by the instruction for that: LLVM would keep a vector of it."""
    if isinstance(words, tirx.RShift) and isinstance(words.b, tirx.Broadcast):
        return tirx.call_llvm_pure_intrin(WORDS, SHIFT_BY_NUMBER, words.a, words.b.value)
    return words


def _numbers(low: tirx.Expr, high: tirx.Expr) -> tirx.Expr | None:
    """Return the int16 that two vectors repeat, as a word."""
    if not (isinstance(low, tirx.Broadcast) and isinstance(high, tirx.Broadcast)):
        return None
    return (low.value.astype("int32") & 0xFFFF) | (high.value.astype("int32") << 16)
