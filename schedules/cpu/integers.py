"""Saturating, multiplying and joining of small integers, by the instructions that a CPU has for them."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import ir, tirx
from tvm.target import Target
from tvm.target.codegen import target_has_features

from ..kernels import PORTABLE
from ..kernels.integers import BYTE_OF, HIGH_BITS, JOIN_BYTES, MULTIPLY_HIGH, SATURATE_INT16, SATURATE_UINT8
from ..kernels.quantized import LARGEST, WORD
from . import hexagon_integers
from .hexagon import HVX
from .hexagon_loads import loaded_by_vectors
from .stored_together import Packing
from .vectors import ARM_LANES, concatenated, lanes_of, shuffled

HIGH = {
    32: ("avx512bw", "llvm.x86.avx512.pmul.hr.sw.512"),
    16: ("avx2", "llvm.x86.avx2.pmul.hr.sw"),
    8: ("ssse3", "llvm.x86.ssse3.pmul.hr.sw.128"),
}
"""Features and intrinsics of x86 that multiply 16 bits and round the high half, by lanes."""
ARM_HIGH = {8: "llvm.aarch64.neon.sqrdmulh.v8i16", 4: "llvm.aarch64.neon.sqrdmulh.v4i16"}
"""The same of ARM."""
PACKS = {
    SATURATE_INT16: {
        32: ("avx512bw", "llvm.x86.avx512.packssdw.512"),
        16: ("avx2", "llvm.x86.avx2.packssdw"),
        8: ("sse2", "llvm.x86.sse2.packssdw.128"),
    },
    SATURATE_UINT8: {
        64: ("avx512bw", "llvm.x86.avx512.packuswb.512"),
        32: ("avx2", "llvm.x86.avx2.packuswb"),
        16: ("sse2", "llvm.x86.sse2.packuswb.128"),
    },
}
"""Features and intrinsics of x86 that saturate two vectors to half of their bits, by lanes of the result."""
RANGES = {SATURATE_INT16: (-(2**15), 2**15 - 1), SATURATE_UINT8: (0, 255)}
REGISTER = 16
"""Bytes of a register of 128 bits: the wider ones pack each such part on its own."""
FEATURES = ("avx512bw", "avx2", "ssse3", "sse2")


@tirx.transform.prim_func_pass(opt_level=0, name="pock.LowerIntegers")
def lower_integers(func: tirx.PrimFunc, _mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Lower the operators of ``schedules/kernels/integers.py``, of vectors or numbers, for the function's target.

    Bytes of four vectors are computed together, wherever they are stored: each fills a quarter of a register. x86 packs
    and rounds by ``vpackssdw``, ``vpackuswb`` and ``vpmulhrsw``, Hexagon by ``vpack`` and ``vmpy``, ARM by ``sqrdmulh``
    (and, for what is left as arithmetic, LLVM finds ``sqxtn`` and ``sqxtun``). Anywhere else, and in source code, it is
    plain arithmetic.
    """
    is_source = PORTABLE in func.attrs
    features = () if is_source else _features(func.attrs["target"])

    def lowered(node: ir.Call) -> tirx.Expr:
        name = getattr(node.op, "name", "")
        if name in RANGES:
            return _saturated(name, node.args[0])
        if name == MULTIPLY_HIGH:
            return _multiplied_by_parts(node.args, features)
        if name == JOIN_BYTES:
            return _joined(node.args, is_source)
        if name == BYTE_OF:
            return _byte_of(*node.args)
        return node

    packings = [] if is_source else _packings(features)

    def together(steps: tirx.SeqStmt) -> tirx.Stmt:
        found = list(steps.seq)
        for packing in packings:
            found = packing.steps(found)
        if HVX in features:
            found = hexagon_integers.pairs(found)
        return tirx.SeqStmt(found)

    body = tvm_ffi.structural_map(func.body, (tirx.SeqStmt, together))
    if HVX in features:
        body = loaded_by_vectors(body)
        body = tvm_ffi.structural_map(body, (tirx.BitwiseAnd, hexagon_integers.masked))
        body = tvm_ffi.structural_map(body, (ir.Call, hexagon_integers.words))
    return func.with_body(tvm_ffi.structural_map(body, (ir.Call, lowered)))


def _packings(features: Sequence[str]) -> list[Packing]:
    """Return how a target packs vectors of sums, by their lanes."""
    if "aarch64" in features:
        return [Packing(ARM_LANES, ARM_LANES, _packed_by_arm)]
    if HVX in features:
        return hexagon_integers.PACKINGS
    return [
        Packing(lanes // 2, REGISTER // WORD, _packed_by_x86)
        for lanes, (feature, _) in PACKS[SATURATE_INT16].items()
        if feature in features
    ]


def _packed_by_arm(name: str, low: tirx.Expr, high: tirx.Expr) -> tirx.Expr:
    kind = "int16" if name == SATURATE_INT16 else "uint8"
    return tirx.call_intrin(f"{kind}x{2 * lanes_of(low)}", name, concatenated([low, high]))


def _packed_by_x86(name: str, low: tirx.Expr, high: tirx.Expr) -> tirx.Expr:
    lanes = 2 * lanes_of(low)
    _, intrinsic = PACKS[name][lanes]
    if name == SATURATE_INT16:
        return tirx.call_llvm_pure_intrin(f"int16x{lanes}", intrinsic, low, high)
    packed = tirx.call_llvm_pure_intrin(f"int8x{lanes}", intrinsic, low, high)
    return tirx.reinterpret(f"uint8x{lanes}", packed)


def _features(target: Target) -> tuple[str, ...]:
    """Return those features of a target that have instructions here."""
    triple = str(target.attrs.get("mtriple") or "")
    if triple.startswith(("aarch64", "arm64")):
        return ("aarch64",)
    known = (HVX,) if triple.startswith("hexagon") else FEATURES
    return tuple(each for each in known if target_has_features(each, target))


def _high_products(features: Sequence[str]) -> dict[int, tuple[str, str]]:
    return {lanes: ("aarch64", name) for lanes, name in ARM_HIGH.items()} if "aarch64" in features else HIGH


def _multiplied_by_parts(operands: Sequence[tirx.Expr], features: Sequence[str]) -> tirx.Expr:
    """Multiply vectors in parts, each by the widest intrinsic that the target has, and what is left by arithmetic."""
    if HVX in features and lanes_of(operands[0]) == hexagon_integers.HALVES:
        return hexagon_integers.multiplied_high(*operands)
    known = _high_products(features)
    sizes = [lanes for lanes, (feature, _) in known.items() if feature in features]
    lanes, start, parts = lanes_of(operands[0]), 0, []
    while start < lanes:
        size = next((each for each in sizes if each <= lanes - start), lanes - start)
        part = [shuffled([each], range(start, start + size)) for each in operands]
        kind = f"int16x{size}"
        is_known = size in sizes
        parts.append(tirx.call_llvm_pure_intrin(kind, known[size][1], *part) if is_known else _multiplied_high(part))
        start += size
    return concatenated(parts)


def _saturated(name: str, value: tirx.Expr) -> tirx.Expr:
    low, high = RANGES[name]
    kind = str(value.ty.dtype)
    clipped = tirx.min(tirx.max(value, _constant(low, kind)), _constant(high, kind))
    return clipped.astype(_with_lanes("int16" if name == SATURATE_INT16 else "uint8", lanes_of(value)))


def _multiplied_high(operands: Sequence[tirx.Expr]) -> tirx.Expr:
    lanes = lanes_of(operands[0])
    wide, narrow = _with_lanes("int32", lanes), _with_lanes("int16", lanes)
    left, right = (each.astype(wide) for each in operands)
    half, bits = (_constant(value, wide) for value in (1 << (HIGH_BITS - 1), HIGH_BITS))
    return ((left * right + half) >> bits).astype(narrow)


def _byte_of(word: tirx.Expr, number: tirx.Expr) -> tirx.Expr:
    kind = str(word.ty.dtype)
    eight, mask = _constant(8, kind), _constant(LARGEST, kind)
    return ((word >> (number * eight)) & mask).astype(_with_lanes("int16", lanes_of(word)))


def _joined(operands: Sequence[tirx.Expr], is_source: bool) -> tirx.Expr:
    """Join bytes to words: as they lie in memory, little-endian."""
    lanes, count = lanes_of(operands[0]), len(operands)
    if lanes > 1 and not is_source:
        interleaved = shuffled(operands, [byte * lanes + lane for lane in range(lanes) for byte in range(count)])
        return tirx.reinterpret(f"int32x{lanes}", interleaved)
    kind = _with_lanes("int32", lanes)
    low, *others = (each.astype(kind) for each in operands)
    for byte, other in enumerate(others, 1):
        low = low | (other << _constant(8 * byte, kind))
    return low


def _constant(value: int, kind: str) -> tirx.Expr:
    return tirx.const(value, kind)


def _with_lanes(kind: str, lanes: int) -> str:
    return kind if lanes == 1 else f"{kind}x{lanes}"
