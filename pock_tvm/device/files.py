"""Writes files atomically."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import PockError


def check_folder(path: str | os.PathLike[str]) -> None:
    """Check that a file can be written, before the work whose result it is to hold.

    Raises
    ------
    PockError
        The folder of ``path`` is missing.
    """
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise PockError(f"'{path}' cannot be written: there is no folder '{folder}'")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces ``path`` when the block ends. After an error the old file stays."""
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            yield file
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
