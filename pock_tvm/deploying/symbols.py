"""Symbols that kernels' objects leave to others, for targets that have no C library."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..compiler.footprint.objects import undefined
from ..errors import PockError
from .templates import text_of

MATH = "pock_math.c"
"""File of ``runtime/`` that has functions of the C library's ``math.h``."""
ALWAYS = re.compile(r"memcpy|memset|memmove|__aeabi_\w+|__hexagon_\w+|__TVMBackendParallelLaunch")
"""Functions that every bundle has: the launcher is its own, the rest comes with a compiler or the start-up code."""


def runtime_for(kernels: Mapping[str, bytes]) -> tuple[str, ...]:
    """The files of ``runtime/`` that objects need on a target without a C library. ``kernels``: code by name.

    Raises
    ------
    PockError
        A kernel calls a function that no bundle has.
    """
    provided = set(re.findall(r"^float (\w+)\(", text_of(MATH), re.MULTILINE))
    called = {kernel: undefined(code) for kernel, code in kernels.items()}
    for kernel, names in called.items():
        for name in sorted(names - provided):
            if not ALWAYS.fullmatch(name):
                raise PockError(
                    f"the kernel '{kernel}' calls '{name}', which a device without a C library lacks: deploy without "
                    "the operator that it computes, or on a device with a C library"
                )
    return (MATH, "pock_math.h") if provided & set().union(*called.values()) else ()
