"""Traits of a GPU, from TVM's target."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tvm.target import Target

from ..target import Traits

DIALECTS = ("cuda", "metal", "opencl", "webgpu")
"""Kinds of TVM's targets that kernels are written for."""
KIB = 2**10
TF32 = "tf32"
"""Key of a TVM target for CUDA whose products of float32 may be in tf32."""
PTX = "ptx"
"""Key of a TVM target for CUDA whose kernels a driver compiles, for any GPU from ``arch`` on."""


@dataclass(frozen=True, kw_only=True)
class GpuTraits(Traits):
    """Traits of a GPU. Sizes in bytes are limits of a block (OpenCL: a work group)."""

    dialect: str
    """Language of the kernels: one of ``DIALECTS``."""
    warp: int
    """Threads that run in step: a warp, a SIMD group, a subgroup."""
    threads: int
    """Most threads of a block."""
    shared_bytes: int
    """Most memory that the threads of a block share."""
    registers: int = 255
    """Most 32-bit registers of a thread."""
    arguments: int = 31
    """Most buffers that a kernel binds."""
    architecture: str = ""
    """CUDA's name of what kernels are compiled for: ``sm_87`` for machine code, ``compute_75`` for PTX."""
    matrix_units: bool = False
    """Whether warps multiply matrices of 16-bit factors (CUDA's ``mma.m16n8k16``), and memory is copied to shared
    memory beside the threads (``cp.async``)."""
    simd_matrices: bool = False
    """Whether SIMD groups multiply matrices of float32 (Metal's ``simdgroup_matrix``, of Apple's GPUs since the M1)."""
    tf32: bool = False
    """Whether matrix units multiply float32 too, its mantissa rounded to 10 bits: on request only."""
    alignment: int = 256

    @property
    def peak(self) -> int:
        """Multiply-adds of all cores, four warps each."""
        return 4 * self.warp * self.cores


def traits_of(target: Target) -> GpuTraits:
    """Return the traits of a target of one of ``DIALECTS``. What it does not say is what every such device has."""
    dialect, attrs = target.kind.name, target.attrs
    default = DEFAULTS[dialect]

    def number(name: str, otherwise: int) -> int:
        return int(attrs.get(name) or otherwise)

    shared = number("max_shared_memory_per_block", default.shared_bytes)
    if dialect == "webgpu":  # TVM has a default of its own, and no device need have so much
        shared = min(shared, default.shared_bytes)
    return GpuTraits(
        cores=MODELS.get(str(attrs.get("model")), default.cores),
        cache_bytes=shared,
        dialect=dialect,
        warp=max(number("thread_warp_size", default.warp), default.warp),
        threads=number("max_threads_per_block", default.threads),
        shared_bytes=shared,
        arguments=default.arguments,
        architecture=_architecture(target) if dialect == "cuda" else "",
        matrix_units=has_matrix_units(target),
        simd_matrices=dialect == "metal" and attrs.get("model") in APPLE,
        tf32=has_matrix_units(target) and TF32 in target.keys,
    )


def _architecture(target: Target) -> str:
    return str(target.attrs["arch"]).replace("sm_", "compute_" if PTX in target.keys else "sm_")


def has_matrix_units(target: Target) -> bool:
    """Return whether a GPU has what ``GpuTraits.matrix_units`` says."""
    return target.kind.name == "cuda" and int(re.sub(r"\D", "", str(target.attrs["arch"]))) >= MATRIX_CAPABILITY


MATRIX_CAPABILITY = 80
"""First of CUDA's compute capabilities with bfloat16, in matrix units too, and with asynchronous copies."""
APPLE = ("m1",)
"""Models of Apple's own GPUs."""
MODELS = {"jetson-orin": 8, "jetson-nano": 1, "h200": 132, "m1": 8}
"""Multiprocessors of GPUs, by the attribute ``model`` of TVM's target. An AGX Orin has twice as many as the others."""


@dataclass(frozen=True)
class _Default:
    cores: int
    warp: int
    threads: int
    shared_bytes: int
    arguments: int


DEFAULTS = {
    "cuda": _Default(16, 32, 1024, 48 * KIB, 255),
    "metal": _Default(8, 32, 1024, 32 * KIB, 31),
    "opencl": _Default(8, 16, 256, 32 * KIB, 128),
    # The limits that every WebGPU device keeps (https://www.w3.org/TR/webgpu/#limits).
    "webgpu": _Default(8, 16, 256, 16 * KIB, 8),
}
