"""Traits of a CPU, from TVM's target."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from tvm.target import Target
from tvm.target.codegen import target_has_features

from ..target import Traits
from .cores import CORES, GENERIC_ARM, GENERIC_SCALAR, GENERIC_X86, KIB, Core


@dataclass(frozen=True, kw_only=True)
class CpuTraits(Traits):
    """Traits of a CPU. One without vectors has one lane."""

    lanes: int
    """float32 lanes of a vector register."""
    registers: int
    """Number of vector registers."""
    cache_bytes: int = 512 * KIB
    """L2 cache per core, in bytes."""
    fma_ports: int = 2
    """Vector multiply-adds that start in a cycle."""
    fma_latency: int = 4
    """Cycles from a multiply-add to the next one on the same accumulator."""
    load_ports: float = 2
    """Vector loads that start in a cycle."""

    cache_stream: float = 32
    """Bytes that the L2 cache delivers in a cycle, over many."""

    integer_lanes: int = 0
    """int32 lanes of a vector register, where floats have no vectors; 0: as many as of float32."""
    broadcast_cost: float = 0
    """Multiply-adds in whose time a number gets into all lanes, where no load does that."""
    multiplies_by_numbers: bool = False
    """Whether a dot product of words takes a number beside a vector, faster than two vectors."""
    prefetches: bool = True
    """Whether kernels prefetch. Hexagon's vectors come from its second cache: it would cost slots."""

    @property
    def peak(self) -> int:
        """Lanes of all cores."""
        return self.lanes * self.cores


MEASURED = "pock."
"""Beginning of the keys of a TVM target that say what was measured of the machine: ``pock.fma_ports=2``."""


def measured_key(trait: str, value: float) -> str:
    """Return the key of a TVM target that overrides a trait."""
    return f"{MEASURED}{trait}={value:g}" if isinstance(value, float) else f"{MEASURED}{trait}={value}"


def traits_of(target: Target) -> CpuTraits:
    """Return the traits of an LLVM target, by its instruction set, its core, and its keys of what was measured.

    Raises
    ------
    ValueError
        A key does not name a trait; a Hexagon lacks HVX.
    """
    keys = [str(key).removeprefix(MEASURED) for key in target.keys if str(key).startswith(MEASURED)]
    return replace(_known(target), **dict(map(_measured, keys)))


def _measured(key: str) -> tuple[str, Any]:
    name, _, value = key.partition("=")
    kind = {each.name: each.type for each in fields(CpuTraits)}.get(name)
    if kind is None or not value.replace(".", "", 1).isdigit() or float(value) <= 0:
        raise ValueError(f"the target's key '{MEASURED}{key}' is no trait and its number: 'pock.fma_ports=2' is one")
    return name, int(value) if kind == "int" else float(value)


def _known(target: Target) -> CpuTraits:
    """Return the traits of an LLVM target, by its instruction set and its core.

    Known are x86 with AVX-512, AVX2 or SSE; ARM with NEON; RISC-V with vectors; ARM and RISC-V without;
    Hexagon with HVX.
    """
    triple = str(target.attrs.get("mtriple") or "")
    if triple.startswith(("aarch64", "arm", "thumb")):
        if target_has_features("neon", target):
            wide = triple.startswith(("aarch64", "arm64"))
            return _traits(target, GENERIC_ARM, lanes=4, registers=32 if wide else 16)
        return _traits(target, GENERIC_SCALAR, lanes=1, registers=32)
    if triple.startswith("riscv"):
        lanes = 8 if target_has_features("zvl256b", target) else 4 if target_has_features("v", target) else 1
        return _traits(target, GENERIC_SCALAR, lanes=lanes, registers=32)
    if triple.startswith("hexagon"):
        if not target_has_features("hvx-length128b", target):
            raise ValueError("a Hexagon target needs HVX with vectors of 128 bytes: mattr +hvxv66,+hvx-length128b")
        return _hexagon(target)
    if target_has_features("avx512f", target):
        return _traits(target, GENERIC_X86, lanes=16, registers=32, cache_bytes=1024 * KIB)
    return _traits(target, GENERIC_X86, lanes=8 if target_has_features("avx2", target) else 4, registers=16)


def _hexagon(target: Target) -> CpuTraits:
    has_floats = target_has_features("hvx-qfloat", target)
    lanes, registers = (32, 32) if has_floats else (1, 28)
    scalar = _traits(target, GENERIC_SCALAR, lanes=lanes, registers=registers)
    return replace(
        scalar, integer_lanes=0 if has_floats else 32, prefetches=False, alignment=128, multiplies_by_numbers=True
    )


def _traits(target: Target, generic: Core, *, lanes: int, registers: int, cache_bytes: int = 512 * KIB) -> CpuTraits:
    core = CORES.get(str(target.attrs.get("mcpu") or ""), generic)
    return CpuTraits(
        cores=int(target.attrs.get("num-cores") or 1),
        lanes=lanes,
        registers=registers,
        cache_bytes=core.cache_bytes or cache_bytes,
        fma_ports=core.fma_ports,
        fma_latency=core.fma_latency,
        load_ports=core.load_ports,
        cache_stream=core.cache_stream,
    )
