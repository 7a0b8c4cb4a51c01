"""Bundles for phones: an AAR's layout for Android, a Swift package for iOS, on top of the C of a bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..device.program import Program
from ..errors import PockError
from . import aar, xcframework
from .plan import Plan
from .state_form import StateForm
from .toolchain import ZIG

ANDROID, IOS = "android", "ios"
TRIPLE = re.compile(rf"(?:aarch64|arm64)-.*-({ANDROID}|{IOS})[\d.]*")
"""Of phones. Simulators and other processors are other machines."""


def phone_of(program: Program) -> str | None:
    """Return the system of the phones that a program was compiled for; None for other machines."""
    found = TRIPLE.fullmatch(program.manifest["target"]["triple"])
    return found and found[1]


def check_options(phone: str, cc: str, threads: int, *, source: bool) -> None:
    """Check how a phone's library is to be built here.

    Raises
    ------
    PockError
        With another compiler than zig, or with threads or sources: headers of the phone's C library are missing here.
    """
    if source:
        raise PockError(
            f"kernels as C are not built here for {phone}, whose C library is missing: leave source out, or print the "
            "bundle without building (build=False)"
        )
    if cc != ZIG:
        raise PockError(f"what is built here for {phone} is built by zig (cc='zig'), not by '{cc}'")
    if threads > 1:
        raise PockError(
            f"threads for {phone} are not built here, where its C library is missing: leave them at 1, or print the "
            "bundle without building (build=False), and build it there with POCK_THREADS"
        )


def package(
    phone: str, folder: Path, program: Program, plan: Plan, form: StateForm, kernels: Sequence[Path], *, build: bool
) -> None:
    """Write a phone's package into a bundle's folder, and build its library.

    Raises
    ------
    PockError
        The compiler fails, or the network is too large for Java's buffers.
    """
    write = aar.package if phone == ANDROID else xcframework.package
    write(folder, program, plan, form, kernels if build else None)


def remark(phone: str, *, built: bool) -> str:
    """Return what is left to do for a phone, in words."""
    if phone == ANDROID:
        library = "libpock.so is linked, Kotlin is not compiled" if built else "not linked, Kotlin is not compiled"
        return f"android/: {library}, nothing was run under Android. Gradle goes on: see its README.md"
    return "ios/: not linked, Swift is not compiled, nothing was run under iOS. Xcode goes on: see its README.md"
