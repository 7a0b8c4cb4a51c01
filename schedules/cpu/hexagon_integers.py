"""Saturating, packing and multiplying of small integers by HVX's instructions.

LLVM takes every vector of these as 32 words. ``vpack`` leaves the lanes of its second operand, then those of the first.
"""

from __future__ import annotations

from collections.abc import Sequence

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
SHIFT_AND_SATURATE = "llvm.hexagon.V6.vasrwhsat.128B"
"""Shift the words of two vectors by a number below 16, and saturate them as above."""
CALL_LLVM = "tirx.call_llvm_pure_intrin"
AND = "llvm.hexagon.V6.vand.128B"
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


def masked(node: tirx.BitwiseAnd) -> tirx.Expr:
    """Return words masked by others by the instruction for that: LLVM would build a known mask from shuffles."""
    if lanes_of(node) != LANES or isinstance(node.a, tirx.Broadcast) or isinstance(node.b, tirx.Broadcast):
        return node
    return tirx.call_llvm_pure_intrin(WORDS, AND, node.a, node.b)


def pairs(steps: Sequence[tirx.Stmt]) -> list[tirx.Stmt]:
    """Return statements in which two neighbouring stores of words that join saturated bytes, of the same channels for
    two vectors of pixels, share what computes them: one number then shifts, and multiplies, both.

    Sums that are computed in a store stay there: those of both would all have to be in registers at once.
    """
    found: list[tirx.Stmt] = []
    for step in steps:
        words = _both(found[-1], step) if found else None
        if words is None:
            found.append(step)
            continue
        first = found.pop()
        low, high = tirx.Var("low", WORDS), tirx.Var("high", WORDS)
        found += [tirx.Bind(low, words[0]), tirx.Bind(high, words[1])]
        halves = [_of_two(name, high, low) for name in SHUFFLE_HALVES]
        found += [
            tirx.BufferStore(store.buffer, each, store.indices)
            for store, each in zip((first, step), halves, strict=True)
        ]
    return found


def _both(first: tirx.Stmt, second: tirx.Stmt) -> tuple[tirx.Expr, tirx.Expr] | None:
    """Return the bytes of two stores, lane by lane: channels 0 and 1 of both, then channels 2 and 3; None if they are
    computed alone."""
    stores = [store for store in (first, second) if isinstance(store, tirx.BufferStore)]
    joins = [store.value for store in stores if name_of(store.value) == JOIN_BYTES and lanes_of(store.value) == LANES]
    if len(joins) < 2 or not all(name_of(each) == SATURATE_UINT8 for join in joins for each in join.args):
        return None
    if any(_computes_sums(join) for join in joins):
        return None
    channels = [_halves(*(each.args[0] for each in pair)) for pair in zip(*(join.args for join in joins), strict=True)]
    if any(each is None for each in channels):
        return None
    a, b, c, d = (tirx.reinterpret(WORDS, each) for each in channels)
    return _of_two(SATURATE_HALVES, b, a), _of_two(SATURATE_HALVES, d, c)


def _computes_sums(words: tirx.Expr) -> bool:
    called: list[str] = []
    tvm_ffi.structural_walk(words, (ir.Call, lambda call: called.append(name_of(call))))
    return CALL_LLVM in called


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
        given = [each.args[0] for each in (high, low)]
        if (both := _shifted_together(*given)) is not None:
            return tirx.reinterpret(kind, both)
        operands = [_shifted(each) for each in given]
        return tirx.reinterpret(kind, tirx.call_llvm_pure_intrin(WORDS, SATURATE_WORDS, *operands))
    if names == {HIGH_PRODUCT}:
        left, numbers = _halves(low.args[0], high.args[0]), _numbers(low.args[1], high.args[1])
        if left is None or numbers is None:
            return None
        given = tirx.reinterpret(WORDS, left)
        return tirx.reinterpret(kind, tirx.call_llvm_pure_intrin(WORDS, MULTIPLY_HIGH_BY_NUMBERS, given, numbers))
    if names == {BYTE_OF} and _place(low)[1] == _place(high)[1]:
        number = _place(low)[1]
        bytes_of = _of_two(SHUFFLE_HALVES[number // 2], high.args[0], low.args[0])
        halves = tirx.reinterpret(kind, bytes_of)
        mask, eight = (tirx.Broadcast(tirx.const(value, "int16"), HALVES) for value in (0xFF, 8))
        return (halves >> eight if number % 2 else halves) & mask
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


def _shifted_together(high: tirx.Expr, low: tirx.Expr) -> tirx.Expr | None:
    """Return words that the same number shifts, saturated to int16; None for others."""
    shifts = [each for each in (high, low) if isinstance(each, tirx.RShift) and isinstance(each.b, tirx.Broadcast)]
    if len(shifts) < 2 or not tvm_ffi.structural_equal(shifts[0].b, shifts[1].b):
        return None
    return tirx.call_llvm_pure_intrin(WORDS, SHIFT_AND_SATURATE, shifts[0].a, shifts[1].a, shifts[0].b.value)


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
