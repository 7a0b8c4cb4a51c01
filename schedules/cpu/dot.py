"""Dot products of words of four bytes, by the instructions that a CPU has for them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import tvm
import tvm_ffi
from tvm import ir, tirx
from tvm.target import Target
from tvm.target.codegen import target_has_features

from ..kernels import PORTABLE
from ..kernels.quantized import DOT, WORD
from . import hexagon

BYTE, HALF = 8, 16
"""Bits of a byte, and of half a word."""
VNNI = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256", 4: "llvm.x86.avx512.vpdpbusd.128"}
"""Intrinsics that add the dot products of words to sums, by the number of words."""
PAIRS = {
    16: ("avx512bw", "llvm.x86.avx512.pmaddw.d.512"),
    8: ("avx2", "llvm.x86.avx2.pmadd.wd"),
    4: ("sse2", "llvm.x86.sse2.pmadd.wd"),
}
"""Features and intrinsics that multiply pairs of 16 bits and add the two products, by the number of pairs."""


@tirx.transform.prim_func_pass(opt_level=0, name="pock.LowerDot")
def lower_dot(func: tirx.PrimFunc, _mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Lower ``pock.dot4`` of words, and of vectors of words, for the function's target.

    With VNNI, ``vpdpbusd`` adds to sums without saturating. Elsewhere on x86, bytes are widened to 16 bits:
    ``vpmaddwd`` multiplies these and adds pairs, exactly. (``vpmaddubsw`` would take the bytes as they are, and
    saturates.) Anywhere else, and in source code, it is plain arithmetic.
    """
    features = () if PORTABLE in func.attrs else _features(func.attrs["target"])

    def lowered(node: ir.Call) -> tirx.Expr:
        return _dot(node.args[0], node.args[1], features) if _is_dot(node) else node

    def added(node: tirx.Add) -> tirx.Expr:
        sums = _added(node.a, node.b.args[0], node.b.args[1], features) if _is_dot(node.b) else None
        return node if sums is None else sums

    body = tvm_ffi.structural_map(func.body, (tirx.Add, added))
    return func.with_body(tvm_ffi.structural_map(body, (ir.Call, lowered)))


def _is_dot(node: object) -> bool:
    return isinstance(node, ir.Call) and getattr(node.op, "name", "") == DOT


def _lanes(value: tirx.Expr) -> int:
    return int(tvm.DataType(str(value.ty.dtype)).lanes)


def _features(target: Target) -> tuple[str, ...]:
    """Return those features of a target that have dot products."""
    known = ("avx512vnni", "avx512vl", hexagon.HVX, *(feature for feature, _ in PAIRS.values()))
    return tuple(each for each in known if target_has_features(each, target))


def _added(sums: tirx.Expr, x: tirx.Expr, weights: tirx.Expr, features: Collection[str]) -> tirx.Expr | None:
    """Return ``sums`` and the dot products of words by one instruction, or None if the target has none."""
    lanes = _lanes(x)
    if hexagon.HVX in features:
        return hexagon.added(sums, x, weights, lanes)
    needed = ["avx512vnni"] if lanes == 16 else ["avx512vnni", "avx512vl"]
    if lanes not in VNNI or not all(each in features for each in needed):
        return None
    as_bytes = f"int8x{WORD * lanes}"
    operands = (tirx.reinterpret(as_bytes, each) for each in (x, weights))
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", VNNI[lanes], sums, *operands)


def _dot(x: tirx.Expr, weights: tirx.Expr, features: Collection[str]) -> tirx.Expr:
    lanes = _lanes(x)
    feature, intrinsic = PAIRS.get(lanes, ("", ""))
    if feature in features:
        return _by_pairs(x, weights, lanes, intrinsic)
    products = [_byte(x, at, signed=False) * _byte(weights, at, signed=True) for at in range(WORD)]
    return (products[0] + products[1]) + (products[2] + products[3])


def _by_pairs(x: tirx.Expr, weights: tirx.Expr, lanes: int, intrinsic: str) -> tirx.Expr:
    """Multiply the bytes at even and at odd places of all words, widened to 16 bits."""
    halves = f"int16x{2 * lanes}"
    eight = tirx.Broadcast(tirx.const(BYTE, "int16"), 2 * lanes)
    low = tirx.Broadcast(tirx.const(0x00FF00FF, "int32"), lanes)

    def pairs(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
        return tirx.call_llvm_pure_intrin(f"int32x{lanes}", intrinsic, left, right)

    signed = tirx.reinterpret(halves, weights)
    even = pairs(tirx.reinterpret(halves, x & low), (signed << eight) >> eight)
    shifted = (x >> tirx.Broadcast(tirx.const(BYTE, "int32"), lanes)) & low
    return even + pairs(tirx.reinterpret(halves, shifted), signed >> eight)


def _byte(words: tirx.Expr, at: int, *, signed: bool) -> tirx.Expr:
    """Return byte ``at`` of each word, widened to 32 bits."""
    up = (WORD - 1 - at) * BYTE
    constant: Callable[[int], tirx.Expr] = lambda value: tirx.const(value, str(words.ty.dtype))  # noqa: E731
    if not signed:
        return (words >> constant(at * BYTE)) & constant(0xFF)
    return (words << constant(up)) >> constant((WORD - 1) * BYTE)
