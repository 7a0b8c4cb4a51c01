"""Built kernels, kept on disk: the second compile of a network builds nothing."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import time
from pathlib import Path

import tvm
from tvm.target import Target

import schedules

from ..device.files import replacing

VARIABLE = "POCK_CACHE"
"""The environment variable that names another folder for the cache, or is ``off``."""
UNUSED = 30 * 24 * 3600
"""Seconds after which the kernels of a target and a state of the compiler that nobody asked for are removed."""


class KernelCache:
    """Object files by the names of kernels (:class:`relay_passes.NameKernels`), for one target.

    A folder for each state of the compiler: what the schedules and TVM are decides what a kernel becomes.
    """

    def __init__(self, target: Target) -> None:
        place = os.environ.get(VARIABLE) or str(Path.home() / ".cache" / "pock-tvm")
        state = hashlib.sha256(f"{target} {tvm.__version__} {_sources()}".encode()).hexdigest()[:16]
        self.folder = None if place == "off" else Path(place) / "kernels" / state
        if self.folder is not None:
            with contextlib.suppress(OSError):
                os.utime(self.folder)

    def get(self, name: str) -> bytes | None:
        """The object file of a kernel, if it was built before."""
        path = self.folder and self.folder / f"{name}.o"
        try:
            return path.read_bytes() if path else None
        except OSError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Keep the object file of a kernel. A cache that cannot be written is no reason to fail."""
        if self.folder is None:
            return
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                _remove_unused(self.folder.parent)
            with replacing(self.folder / f"{name}.o") as file:
                file.write(data)
        except OSError:
            self.folder = None


def _remove_unused(root: Path) -> None:
    """Drop the folders that were not used for long: those of compilers that are gone, for the most part."""
    for folder in root.iterdir():
        if time.time() - folder.stat().st_mtime > UNUSED:
            shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _sources() -> str:
    """A digest of everything that turns a definition into an object file."""
    digest = hashlib.sha256()
    for path in sorted(Path(schedules.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
