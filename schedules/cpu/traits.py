"""Traits of a CPU, from TVM's target."""

from __future__ import annotations

from tvm.target import Target
from tvm.target.codegen import target_has_features

from ..target import Traits


def traits_of(target: Target) -> Traits:
    """Return the traits of an LLVM target: x86 with AVX-512, AVX2 or SSE, or ARM with NEON."""
    cores = int(target.attrs.get("num-cores") or 1)
    triple = str(target.attrs.get("mtriple") or "")
    if triple.startswith(("aarch64", "arm")):
        return Traits(lanes=4, registers=32 if triple.startswith(("aarch64", "arm64")) else 16, cores=cores)
    if target_has_features("avx512f", target):
        return Traits(lanes=16, registers=32, cores=cores, l2_bytes=1024 * 1024)
    return Traits(lanes=8 if target_has_features("avx2", target) else 4, registers=16, cores=cores)
