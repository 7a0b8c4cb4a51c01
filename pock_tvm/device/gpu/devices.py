"""Devices by name: ``opencl:0``, ``cuda:1``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DeviceError, InputError, ProgramError
from .backend import LESS_MEMORY, MIB, Backend

BACKENDS = {
    "cuda": ("cuda", "CudaBackend"),
    "metal": ("metal", "MetalBackend"),
    "opencl": ("opencl", "OpenClBackend"),
    "webgpu": ("webgpu", "WebGpuBackend"),
}
"""Module and class of the back end of each dialect."""


def refuse_gpu(target: Mapping[str, Any], where: str) -> None:
    """Check that a manifest's target is a CPU.

    Raises
    ------
    ProgramError
        It is a GPU, whose programs do not run ``where``.
    """
    if target["triple"] in BACKENDS:
        raise ProgramError(
            f"this program was compiled for a GPU ({target['triple']}), and programs {where} run on CPUs: compile it "
            "for one (pock targets)"
        )


def open_device(name: str, dialect: str, instructions: Sequence[str] = (), needed: int = 0) -> Backend:
    """Open a device for kernels of a dialect and its instruction sets, and for so many bytes.

    Raises
    ------
    InputError
        ``name`` is not ``<dialect>`` or ``<dialect>:<number>``.
    ProgramError
        The kernels are of another dialect, or of instruction sets that the device has not.
    DeviceError
        There is no such device, or what speaks to it is not installed, or it has less memory free.
    """
    kind, _, number = name.partition(":")
    if kind not in BACKENDS or not (number or "0").isdecimal():
        raise InputError(f"'{name}' is no device: give one of {', '.join(f'{each}:0' for each in BACKENDS)}")
    if kind != dialect:
        raise ProgramError(f"this program was compiled for {dialect}, not for '{name}': compile it for target '{kind}'")
    module, backend = BACKENDS[kind]
    found: Backend = getattr(importlib.import_module(f".{module}", __package__), backend)(int(number or 0))
    lacking = found.lacks(instructions)
    if lacking:
        raise ProgramError(f"this program does not run on {found.name}: {lacking}")
    free = found.free_bytes()
    if free is not None and needed > free:
        raise DeviceError(
            f"this program needs {needed / MIB:.1f} MiB of memory, and {found.name} has at most {free / MIB:.1f} free. "
            f"{LESS_MEMORY}"
        )
    return found
