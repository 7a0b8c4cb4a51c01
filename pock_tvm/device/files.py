"""Writes files atomically, and finds out beforehand whether they can be written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import PockError
from .reading import reason


class WriteError(PockError, OSError):
    """A file cannot be written: no folder, no permission, no room."""


def check_folder(path: str | os.PathLike[str]) -> None:
    """Check that a file can be written, before the work whose result it is to hold.

    Raises
    ------
    WriteError
        The folder of ``path`` is missing, forbidden, read-only or full, or ``path`` is a folder.
    """
    target = Path(path).absolute()
    if not target.parent.is_dir():
        raise WriteError(f"'{path}' cannot be written: there is no folder '{target.parent}'")
    if target.is_dir():
        raise WriteError(f"'{path}' cannot be written: it is a folder")
    with writing(path), tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name[:100]}.") as file:
        file.write(b"\0" * PROBE_BYTES)


PROBE_BYTES = 4096
"""Bytes that are written to find out whether there is room: a block of most file systems."""


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder with those above it, before the work whose results it is to hold; raises as
    :func:`check_folder`."""
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    check_folder(Path(path) / "file")


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system says of a failed write into one line that names the file."""
    try:
        yield
    except WriteError:
        raise
    except OSError as fault:
        raise WriteError(f"'{path}' cannot be written: {reason(fault)}") from fault


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces ``path`` when the block ends. After an error the old file stays.

    Raises
    ------
    WriteError
        There is no folder, no permission or no room.
    """
    path = Path(path)
    with writing(path), tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            yield file
            file.flush()
        except BaseException:
            Path(file.name).unlink()
            raise
    with writing(path):
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
