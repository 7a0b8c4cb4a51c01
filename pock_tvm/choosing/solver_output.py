"""Quiet for C and C++ code that prints what nobody can act on."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def silenced(descriptor: int) -> Iterator[None]:
    """Drop what is written to a descriptor (1: standard output, 2: standard error), C's buffered printing too."""
    flush = ctypes.CDLL(None).fflush
    flush(None)
    kept = os.dup(descriptor)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), descriptor)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, descriptor)
        os.close(kept)
