"""Writes files so that neither a crash nor a full disk costs the old content, and finds out beforehand whether they can
be written."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import WriteError
from .reading import reason

NEW_FILE = 0o666
"""Permissions that a new file asks for; the umask takes its part."""
PROBE_BYTES = 4096
"""Bytes that are written to find out whether there is room: a block of most file systems."""
NAME_LENGTH = 40
"""Characters of a file's name that stand in those of new files for it, which a file system has to take, too."""

_count = itertools.count()


def check_folder(path: str | os.PathLike[str]) -> None:
    """Check that a file can be written, before the work whose result it is to hold.

    Raises
    ------
    WriteError
        The folder of ``path`` is missing, forbidden, read-only or full, or ``path`` is a folder.
    """
    target = followed(path)
    if not target.parent.is_dir():
        raise _missing_folder(path)
    if target.is_dir():
        raise WriteError(f"'{path}' cannot be written: it is a folder")
    with writing(path):
        probe = _temporary(target)
        try:
            with os.fdopen(_created(probe), "wb") as file:
                file.write(b"\0" * PROBE_BYTES)
        finally:
            _remove(probe)


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
        if isinstance(fault, FileNotFoundError) and not followed(path).parent.is_dir():
            raise _missing_folder(path) from fault
        raise WriteError(f"'{path}' cannot be written: {reason(fault)}") from fault


def _missing_folder(path: str | os.PathLike[str]) -> WriteError:
    return WriteError(f"'{path}' cannot be written: there is no folder '{followed(path).parent}'")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, flush: bool = True) -> Iterator[IO[bytes]]:
    """Open a new file beside ``path``, which replaces it when the block ends. After an error the old file stays.

    The new content is on the disk before the old one goes, so that after a power cut there is either of them; without
    ``flush``, for what can be made again, there may be neither. Links are followed. Permissions are those of the old
    file, otherwise what the umask leaves.

    Raises
    ------
    WriteError
        The disk is full or read-only, or the folder is missing or forbidden.
    """
    target = followed(path)
    new = _temporary(target)
    with writing(path):
        try:
            with os.fdopen(_created(new), "wb") as file:
                if target.exists():
                    os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
                yield file
                file.flush()
                if flush:
                    os.fsync(file.fileno())
            new.replace(target)
            if flush:
                flush_folder(target.parent)
        except BaseException:
            _remove(new)
            raise


def flush_folder(folder: Path) -> None:
    """Flush a folder's names to the disk: until then a power cut may undo a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove new files for ``path`` that processes of this machine left behind when they were killed."""
    target = followed(path)
    prefix = _prefix(target)
    for entry in target.parent.iterdir() if target.parent.is_dir() else ():
        owner = entry.name.removeprefix(prefix).partition("-")[0]
        if entry.name.startswith(prefix) and owner.isdecimal() and not _runs(int(owner)):
            _remove(entry)


def followed(path: str | os.PathLike[str]) -> Path:
    """The file that a path leads to, links followed."""
    return Path(os.path.realpath(path))


def _temporary(target: Path) -> Path:
    """A name beside ``target`` that no other writer has: of machine, process and turn."""
    return target.with_name(f"{_prefix(target)}{os.getpid()}-{next(_count)}.tmp")


def _prefix(target: Path) -> str:
    return f".{target.name[:NAME_LENGTH]}.{os.uname().nodename}-"


def _created(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, NEW_FILE)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # on a read-only disk it stays; the error on its way says why
        path.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
