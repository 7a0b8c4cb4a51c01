"""Instruction sets of CPUs: which of them a program needs, and which this machine has.

Needs no compiler: Linux lists what a CPU has.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .machine import machine_triple

X86 = {
    "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "sse4a": "sse4a", "cx16": "cx16",
    "popcnt": "popcnt", "lzcnt": "abm", "movbe": "movbe", "bmi": "bmi1", "bmi2": "bmi2", "adx": "adx", "tbm": "tbm",
    "avx": "avx", "avx2": "avx2", "fma": "fma", "fma4": "fma4", "f16c": "f16c", "xop": "xop", "gfni": "gfni",
    "avxvnni": "avx_vnni", "avxifma": "avx_ifma", "avxvnniint8": "avx_vnni_int8", "avxvnniint16": "avx_vnni_int16",
    "avxneconvert": "avx_ne_convert", "avx512f": "avx512f", "avx512cd": "avx512cd", "avx512dq": "avx512dq",
    "avx512bw": "avx512bw", "avx512vl": "avx512vl", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2", "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16", "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq",
    "amx-tile": "amx_tile", "amx-int8": "amx_int8", "amx-bf16": "amx_bf16", "amx-fp16": "amx_fp16",
}  # fmt: skip
ARM = {
    "neon": "asimd", "lse": "atomics", "rdm": "asimdrdm", "fullfp16": "asimdhp", "fp16fml": "asimdfhm",
    "dotprod": "asimddp", "complxnum": "fcma", "jsconv": "jscvt", "fptoint": "frint", "rcpc": "lrcpc",
    "bf16": "bf16", "i8mm": "i8mm", "sve": "sve", "sve2": "sve2", "sme": "sme", "sme2": "sme2",
}  # fmt: skip
LINUX = X86 | ARM
"""What Linux calls the instruction sets that LLVM puts into kernels, by LLVM's names. Those for cryptography, system
code and tuning are left out: no kernel has them, and virtual machines hide some."""
CPUINFO = Path("/proc/cpuinfo")


def instruction_sets(features: Iterable[str]) -> list[str]:
    """Those of LLVM's features of a target that its kernels may use."""
    return sorted(set(features) & set(LINUX))


@functools.cache
def machine_sets() -> frozenset[str] | None:
    """The instruction sets of this machine by LLVM's names; None where the system does not list them."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return None
    # An emulator may show the list of the machine that it runs on, which has another name.
    wanted = "flags" if platform.machine().lower() in ("x86_64", "amd64") else "features"
    lines = [line.partition(":") for line in text.splitlines()]
    found = {flag for name, _, flags in lines if name.strip().lower() == wanted for flag in flags.split()}
    return frozenset(name for name, flag in LINUX.items() if flag in found) if found else None


def obstacle_here(target: Mapping[str, Any]) -> str | None:
    """Why this machine cannot run programs for a manifest's target, and what to do; None if it can.

    An instruction that the CPU lacks would end the process.
    """
    if machine_triple(target["triple"]) != machine_triple():
        return (
            f"this program was compiled for {target['triple']}, and this machine is a {machine_triple()}: compile it "
            "for target 'host'"
        )
    here = machine_sets()
    missing = [] if here is None else sorted(set(target.get("instructions", ())) - here)
    if missing:
        return (
            f"this program needs instructions that this machine's CPU has not: {', '.join(missing)}. Compile it for "
            "target 'host' on this machine, or for an older CPU"
        )
    return None
