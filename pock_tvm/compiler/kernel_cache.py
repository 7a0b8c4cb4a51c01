"""On-disk cache of built kernels: compiling a network again builds nothing."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
import warnings
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
from ..device.reading import MIB, read_file, reason
from ..errors import PockWarning

VARIABLE = "POCK_CACHE"
"""Environment variable with another folder for the cache, or ``off``."""
DIGEST_BYTES = 32
"""Bytes of SHA-256."""
MOST_BYTES = 256 * MIB
"""Most bytes of a file: larger ones are none of ours."""
UNUSED = 30 * 24 * 3600
"""Seconds after which an unused cache folder is removed: 30 days."""

_told: set[str] = set()
"""Folders of which it was said that they cannot be written."""


def cache_root() -> Path | None:
    """Return the folder of all that is kept between runs, or None if nothing is to be."""
    place = os.environ.get(VARIABLE) or str(Path.home() / ".cache" / "pock-tvm")
    return None if place == "off" else Path(place)


@dataclass(frozen=True)
class Kernel:
    """Definition of a kernel: its loops before scheduling."""

    func: tirx.PrimFunc

    @property
    def name(self) -> str:
        """Symbol of the kernel, from :class:`relay_passes.NameKernels`."""
        return str(self.func.attrs["global_symbol"])

    @functools.cached_property
    def definition(self) -> str:
        """Definition as JSON for ``tvm.ir.load_json``."""
        return str(tvm.ir.save_json(self.func))


class KernelCache:
    """Cache of kernel object files for one target, keyed by everything that determines the object.

    There is a folder for each target and compiler state, with a file for each kernel and its decisions, named after the
    kernel (:class:`relay_passes.NameKernels`). A file begins with the digest of the rest, so that damaged ones are
    built again. Names contain hashes, so a file also stores its whole key, which must match. Files are replaced whole:
    any number of processes may share a cache.
    """

    fault = ""
    """Why objects could not be written; empty if all were."""

    def __init__(self, target: Target) -> None:
        root = cache_root()
        self.state = json.dumps([str(target), tvm.__version__, tvm_ffi.__version__, __version__, sources()])
        self.folder = None if root is None else root / "kernels" / _digest(self.state)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                os.utime(self.folder)

    def get(self, kernel: Kernel, decisions: Decisions = DEFAULTS) -> bytes | None:
        """Return the object file of a kernel, or None if it is not cached."""
        if self.folder is None:
            return None
        try:
            content = read_file(self._path(self.folder, kernel, decisions), MOST_BYTES)
        except OSError:  # missing, or unreadable: it is built again
            return None
        digest, packed = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(packed).digest() != digest:
            return None
        stored, _, data = zlib.decompress(packed).partition(b"\0")
        return data if self._is_key_of(stored.decode(), kernel, decisions) else None

    def put(self, data: bytes, kernel: Kernel, decisions: Decisions = DEFAULTS) -> None:
        """Store the object file of a kernel. A failure to write is noted in :attr:`fault`, and ends all attempts."""
        if self.folder is None or self.fault:
            return
        packed = zlib.compress(f"{self._head(decisions)}\n{kernel.definition}".encode() + b"\0" + data, 1)
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                _remove_unused(self.folder.parent)
            with replacing(self._path(self.folder, kernel, decisions), flush=False) as file:
                file.write(hashlib.sha256(packed).digest() + packed)
        except OSError as error:
            self.fault = reason(error)

    def warn(self) -> None:
        """Say once in a process that a cache cannot be written."""
        if self.fault and str(self.folder) not in _told:
            _told.add(str(self.folder))
            warnings.warn(
                f"built kernels are not kept, so that compiling again takes as long: {self.fault}. {VARIABLE} names "
                f"another folder than '{self.folder}', or is 'off'",
                PockWarning,
                stacklevel=2,
            )

    def _path(self, folder: Path, kernel: Kernel, decisions: Decisions) -> Path:
        suffix = f"-{_digest(_text(decisions))}" if decisions else ""
        return folder / f"{kernel.name}{suffix}.kernel"

    def _head(self, decisions: Decisions) -> str:
        return f"{self.state} {_text(decisions)}"

    def _is_key_of(self, key: str, kernel: Kernel, decisions: Decisions) -> bool:
        """Return whether a stored key matches a kernel, up to variable names."""
        head, _, ir = key.partition("\n")
        return head == self._head(decisions) and (
            ir == kernel.definition or tvm_ffi.structural_equal(tvm.ir.load_json(ir), kernel.func, map_free_vars=True)
        )


def _text(decisions: Decisions) -> str:
    return json.dumps(dict(decisions), sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _remove_unused(root: Path) -> None:
    """Remove folders unused for :data:`UNUSED` seconds, mainly of old compiler versions."""
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # another process removed it
            if time.time() - folder.stat().st_mtime > UNUSED:
                shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def sources() -> str:
    """Return a digest of the sources that turn a definition into LLVM's input: definitions, schedules, lowering."""
    digest = hashlib.sha256()
    for path in sorted(Path(schedules.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
