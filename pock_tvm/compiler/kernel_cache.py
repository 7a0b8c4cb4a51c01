"""Built kernels, kept on disk: the second compile of a network builds nothing."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi
from tvm import tirx
from tvm.target import Target

import schedules
from schedules.decisions import DEFAULTS, Decisions

from .. import __version__
from ..device.files import replacing

VARIABLE = "POCK_CACHE"
"""The environment variable that names another folder for the cache, or is ``off``."""
UNUSED = 30 * 24 * 3600
"""Seconds after which an unused folder of kernels is removed."""


@dataclass(frozen=True)
class Kernel:
    """A kernel's definition: loops before any schedule."""

    func: tirx.PrimFunc

    @property
    def name(self) -> str:
        """Its symbol, from :class:`relay_passes.NameKernels`."""
        return str(self.func.attrs["global_symbol"])

    @functools.cached_property
    def definition(self) -> str:
        """The definition as ``tvm.ir.load_json`` reads it."""
        return str(tvm.ir.save_json(self.func))


class KernelCache:
    """Object files of kernels for one target, by everything that decides what a kernel becomes.

    A folder for each target and state of the compiler; in it a file for each kernel and its decisions, by the kernel's
    name (:class:`relay_passes.NameKernels`). Names and folders end in hashes: a file holds its whole key beside the
    object, and only a kernel with an equal key gets it.
    """

    def __init__(self, target: Target) -> None:
        place = os.environ.get(VARIABLE) or str(Path.home() / ".cache" / "pock-tvm")
        self.state = json.dumps([str(target), tvm.__version__, tvm_ffi.__version__, __version__, _sources()])
        self.folder = None if place == "off" else Path(place) / "kernels" / _digest(self.state)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                os.utime(self.folder)

    def get(self, kernel: Kernel, decisions: Decisions = DEFAULTS) -> bytes | None:
        """The object file of a kernel, if it was built before."""
        if self.folder is None:
            return None
        try:
            stored, _, data = zlib.decompress(self._path(self.folder, kernel, decisions).read_bytes()).partition(b"\0")
        except (OSError, zlib.error):  # not there, or cut short
            return None
        return data if self._is_key_of(stored.decode(), kernel, decisions) else None

    def put(self, data: bytes, kernel: Kernel, decisions: Decisions = DEFAULTS) -> None:
        """Keep the object file of a kernel. A cache that cannot be written is no reason to fail."""
        if self.folder is None:
            return
        key = f"{self._head(decisions)}\n{kernel.definition}"
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                _remove_unused(self.folder.parent)
            with replacing(self._path(self.folder, kernel, decisions)) as file:
                file.write(zlib.compress(key.encode() + b"\0" + data, 1))
        except OSError:
            self.folder = None

    def _path(self, folder: Path, kernel: Kernel, decisions: Decisions) -> Path:
        suffix = f"-{_digest(_text(decisions))}" if decisions else ""
        return folder / f"{kernel.name}{suffix}.kernel"

    def _head(self, decisions: Decisions) -> str:
        return f"{self.state} {_text(decisions)}"

    def _is_key_of(self, key: str, kernel: Kernel, decisions: Decisions) -> bool:
        """Whether a stored key is that of a kernel; the names of variables do not count."""
        head, _, ir = key.partition("\n")
        return head == self._head(decisions) and (
            ir == kernel.definition or tvm_ffi.structural_equal(tvm.ir.load_json(ir), kernel.func, map_free_vars=True)
        )


def _text(decisions: Decisions) -> str:
    return json.dumps(dict(decisions), sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _remove_unused(root: Path) -> None:
    """Remove folders that were not used for long: those of compilers that are gone, for the most part."""
    for folder in root.iterdir():
        if time.time() - folder.stat().st_mtime > UNUSED:
            shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _sources() -> str:
    """A digest of everything that turns a definition into what LLVM takes: definitions, schedules, lowering."""
    digest = hashlib.sha256()
    for path in sorted(Path(schedules.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
