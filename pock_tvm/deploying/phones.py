"""Bundles for phones: an AAR's layout for Android, a Swift package for iOS, on top of the C of a bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..device.program import Program
from ..errors import PockError
from . import aar, xcframework
from .computers import check_system, texts_for_systems
from .maker import Maker, Network, Options
from .toolchain import ZIG

ANDROID, IOS = "android", "ios"
TRIPLE = re.compile(rf"(?:aarch64|arm64)-.*-({ANDROID}|{IOS})[\d.]*")
"""Of phones. Simulators and other processors are other machines."""


def phone_of(program: Program) -> str | None:
    """Return the system of the phones that a program was compiled for; None for other machines."""
    found = TRIPLE.fullmatch(program.manifest["target"]["triple"])
    return found and found[1]


class PhoneMaker(Maker):
    """Maker of bundles for phones of one system."""

    def __init__(self, program: Program, options: Options, phone: str) -> None:
        check_system(program, options)
        if options.build and options.cc != ZIG:
            raise PockError(f"what is built here for {phone} is built by zig (cc='zig'), not by '{options.cc}'")
        if options.build and options.threads > 1:
            raise PockError(
                f"threads for {phone} are not built here, where its C library is missing: leave them at 1, or print "
                "the bundle without building (build=False), and build it there with POCK_THREADS"
            )
        self._phone, self._builds, self.embeds_weights = phone, options.build, options.embed_weights

    def texts(self, network: Network) -> dict[str, str]:
        """Return what a computer's bundle has, too."""
        return texts_for_systems(network)

    def make(self, network: Network, folder: Path, kernels: Sequence[Path]) -> None:
        """Write the package for apps, and build its library."""
        package = aar.package if self._phone == ANDROID else xcframework.package
        package(folder, network, kernels if self._builds else None)

    def remarks(self, network: Network) -> list[str]:
        """Return what is left to do."""
        if self._phone == IOS:
            left = "not linked, Swift is not compiled, nothing was run under iOS. Xcode goes on"
        else:
            library = "libpock.so is linked" if self._builds else "not linked"
            left = f"{library}, Kotlin is not compiled, nothing was run under Android. Gradle goes on"
        return [f"{self._phone}/: {left}: see its README.md"]
