"""Traits of a CPU, from TVM's target."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.target import Target
from tvm.target.codegen import target_has_features

from ..target import Traits


@dataclass(frozen=True, kw_only=True)
class CpuTraits(Traits):
    """Traits of a CPU. One without vectors has one lane."""

    lanes: int
    """float32 lanes of a vector register."""
    registers: int
    """Number of vector registers."""
    cache_bytes: int = 512 * 1024
    """L2 cache per core, in bytes."""

    @property
    def peak(self) -> int:
        """Lanes of all cores."""
        return self.lanes * self.cores


def traits_of(target: Target) -> CpuTraits:
    """Return the traits of an LLVM target: x86 with AVX-512, AVX2 or SSE, or ARM with NEON."""
    cores = int(target.attrs.get("num-cores") or 1)
    triple = str(target.attrs.get("mtriple") or "")
    if triple.startswith(("aarch64", "arm")):
        return CpuTraits(lanes=4, registers=32 if triple.startswith(("aarch64", "arm64")) else 16, cores=cores)
    if target_has_features("avx512f", target):
        return CpuTraits(lanes=16, registers=32, cores=cores, cache_bytes=1024 * 1024)
    return CpuTraits(lanes=8 if target_has_features("avx2", target) else 4, registers=16, cores=cores)
