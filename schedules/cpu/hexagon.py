"""Hexagon: vectors of integers (HVX), scalar floats.

QEMU executes HVX's integer instructions and none of its float ones, and v66 has none: so kernels of floats are
scheduled for one lane.
"""

from __future__ import annotations

from dataclasses import replace

import tvm_ffi
from tvm import ir, tirx

from ..kernels.quantized import DOT
from .traits import CpuTraits

HVX = "hvx-length128b"
"""LLVM's feature: vectors of 128 bytes."""
LANES, REGISTERS = 32, 32
"""Words of a vector, and number of vector registers."""
MULTIPLY_ADD = "llvm.hexagon.V6.vrmpybusv.acc.128B"
"""Adds the dot products of words of four uint8 and of four int8 to sums, without saturating."""


def for_kernel(func: tirx.PrimFunc, traits: CpuTraits) -> CpuTraits:
    """Return the traits that a kernel is scheduled by: with vectors, if it computes in integers.

    A product of integers may end in floats: those of its results, which LLVM takes out of the vector one by one.
    """
    if not traits.integer_lanes or not _is_of_integers(func):
        return traits
    # A packet has two multiply-adds of vectors, whose sums are there in the next but one, and one load of a vector.
    return replace(
        traits, lanes=traits.integer_lanes, registers=REGISTERS, fma_ports=2, fma_latency=2, load_ports=1,
        cache_stream=128, integer_lanes=0,
    )  # fmt: skip


def _is_of_integers(func: tirx.PrimFunc) -> bool:
    if not any("float" in str(param.ty.dtype) for param in func.params):
        return True
    called: set[str] = set()
    tvm_ffi.structural_walk(func.body, (ir.Call, lambda call: called.add(getattr(call.op, "name", ""))))
    return DOT in called


def added(sums: tirx.Expr, x: tirx.Expr, weights: tirx.Expr, lanes: int) -> tirx.Expr | None:
    """Return ``sums`` and the dot products of words by one instruction; None unless they fill a vector."""
    if lanes != LANES:
        return None
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", MULTIPLY_ADD, sums, x, weights)
