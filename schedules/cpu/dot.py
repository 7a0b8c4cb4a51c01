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
from .vectors import ARM_LANES, lanes_of

BYTE, HALF = 8, 16
"""Bits of a byte, and of half a word."""
VNNI = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256", 4: "llvm.x86.avx512.vpdpbusd.128"}
"""Intrinsics that add the dot products of words to sums, by the number of words."""
ARM_DOTS = {
    "i8mm": "llvm.aarch64.neon.usdot.v4i32.v16i8",
    "dotprod": "llvm.aarch64.neon.sdot.v4i32.v16i8",
}
"""Intrinsics of ARM that add the dot products of four words to sums: of unsigned and signed bytes, of signed ones."""
PAIRWISE_SUM = "llvm.aarch64.neon.saddlp.v4i32.v8i16"
"""Intrinsic of ARM that adds neighbours of 16 bits to 32 bits."""
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
    saturates.) ARM has ``usdot`` with i8mm; ``sdot``, of bytes less 128, from armv8.2; and products of 16 bits, which
    hold those of bytes, that ``sadalp`` adds. Anywhere else, and in source code, it is plain arithmetic.
    """
    features = () if PORTABLE in func.attrs else _features(func.attrs["target"])

    def lowered(node: ir.Call) -> tirx.Expr:
        return _dot(node.args[0], node.args[1], features) if _is_dot(node) else node

    def added(node: tirx.Add) -> tirx.Expr:
        sums = _added(node.a, node.b.args[0], node.b.args[1], features) if _is_dot(node.b) else None
        return node if sums is None else sums

    body = tvm_ffi.structural_map(func.body, (tirx.Add, _one_by_one))
    body = tvm_ffi.structural_map(body, (tirx.Add, added))
    return func.with_body(tvm_ffi.structural_map(body, (ir.Call, lowered)))


def _one_by_one(node: tirx.Add) -> tirx.Expr:
    """Add two dot products, or more, to sums one after the other."""
    if isinstance(node.b, tirx.Add) and _is_dot(node.b.b):
        return _one_by_one(tirx.Add(node.a, node.b.a)) + node.b.b
    return node


NEON = "neon"


def _is_dot(node: object) -> bool:
    return isinstance(node, ir.Call) and getattr(node.op, "name", "") == DOT


def _features(target: Target) -> tuple[str, ...]:
    """Return those features of a target that have dot products."""
    triple = str(target.attrs.get("mtriple") or "")
    if triple.startswith(("aarch64", "arm64")):
        known: tuple[str, ...] = (*ARM_DOTS, NEON)
    elif triple.startswith("hexagon"):
        known = (hexagon.HVX,)
    else:
        known = ("avx512vnni", "avx512vl", *(feature for feature, _ in PAIRS.values()))
    return tuple(each for each in known if target_has_features(each, target))


def _added(sums: tirx.Expr, x: tirx.Expr, weights: tirx.Expr, features: Collection[str]) -> tirx.Expr | None:
    """Return ``sums`` and the dot products of words by one instruction, or None if the target has none."""
    lanes = lanes_of(x)
    if lanes == ARM_LANES and NEON in features:
        return _added_by_arm(sums, x, weights, features)
    if hexagon.HVX in features:
        return hexagon.added(sums, x, weights, lanes)
    needed = ["avx512vnni"] if lanes == 16 else ["avx512vnni", "avx512vl"]
    if lanes not in VNNI or not all(each in features for each in needed):
        return None
    as_bytes = f"int8x{WORD * lanes}"
    operands = (tirx.reinterpret(as_bytes, each) for each in (x, weights))
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", VNNI[lanes], sums, *operands)


def _added_by_arm(sums: tirx.Expr, x: tirx.Expr, weights: tirx.Expr, features: Collection[str]) -> tirx.Expr:
    def dots(name: str, sums: tirx.Expr, x: tirx.Expr) -> tirx.Expr:
        operands = (tirx.reinterpret("int8x16", each) for each in (x, weights))
        return tirx.call_llvm_pure_intrin("int32x4", ARM_DOTS[name], sums, *operands)

    if "i8mm" in features:
        return dots("i8mm", sums, x)
    if "dotprod" in features:
        # x = (x - 128) + 128: what the second summand brings is the same for all rows of a tile.
        sign = tirx.Broadcast(tirx.const(-0x7F7F7F80, "int32"), ARM_LANES)
        less = dots("dotprod", tirx.Broadcast(tirx.const(0, "int32"), ARM_LANES), sign)
        return dots("dotprod", sums - less, x ^ sign)
    even, odd = _even_and_odd(x, weights)
    for left, right in (even, odd):
        sums = sums + tirx.call_llvm_pure_intrin("int32x4", PAIRWISE_SUM, left * right)
    return sums


def _dot(x: tirx.Expr, weights: tirx.Expr, features: Collection[str]) -> tirx.Expr:
    lanes = lanes_of(x)
    if hexagon.HVX in features and (found := hexagon.multiplied(x, weights)) is not None:
        return found
    feature, intrinsic = PAIRS.get(lanes, ("", ""))
    if feature in features:
        return _by_pairs(x, weights, lanes, intrinsic)
    products = [_byte(x, at, signed=False) * _byte(weights, at, signed=True) for at in range(WORD)]
    return (products[0] + products[1]) + (products[2] + products[3])


def _by_pairs(x: tirx.Expr, weights: tirx.Expr, lanes: int, intrinsic: str) -> tirx.Expr:
    """Multiply the bytes at even and at odd places of all words, widened to 16 bits."""
    even, odd = (tirx.call_llvm_pure_intrin(f"int32x{lanes}", intrinsic, *pair) for pair in _even_and_odd(x, weights))
    return even + odd


def _even_and_odd(x: tirx.Expr, weights: tirx.Expr) -> list[tuple[tirx.Expr, tirx.Expr]]:
    """Return the bytes of both operands at even places, and those at odd places, widened to 16 bits."""
    lanes = lanes_of(x)
    halves = f"int16x{2 * lanes}"
    eight = tirx.Broadcast(tirx.const(BYTE, "int16"), 2 * lanes)
    low = tirx.Broadcast(tirx.const(0x00FF00FF, "int32"), lanes)
    signed = tirx.reinterpret(halves, weights)
    shifted = (x >> tirx.Broadcast(tirx.const(BYTE, "int32"), lanes)) & low
    return [
        (tirx.reinterpret(halves, x & low), (signed << eight) >> eight),
        (tirx.reinterpret(halves, shifted), signed >> eight),
    ]


def _byte(words: tirx.Expr, at: int, *, signed: bool) -> tirx.Expr:
    """Return byte ``at`` of each word, widened to 32 bits."""
    up = (WORD - 1 - at) * BYTE
    constant: Callable[[int], tirx.Expr] = lambda value: tirx.const(value, str(words.ty.dtype))  # noqa: E731
    if not signed:
        return (words >> constant(at * BYTE)) & constant(0xFF)
    return (words << constant(up)) >> constant((WORD - 1) * BYTE)
