"""Silences output of C and C++ code."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def silenced(descriptor: int) -> Iterator[None]:
    """Redirect a file descriptor (1: standard output, 2: standard error) to the null device, C's buffers included."""
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
