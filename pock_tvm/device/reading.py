"""Reads files of unknown origin within limits: sizes, members, nesting, numbers of values.

Uses the standard library alone, and neither opens nor waits for what is no regular file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import os
import stat
import zipfile
from collections.abc import Iterator
from typing import Any, cast

from .errors import PockError

MIB = 2**20
TEXT_BYTES = 64 * MIB
"""Most bytes of a file that is read as text: schemes, contributions, profiles, manifests."""
JSON_VALUES = 3_000_000
"""Most values of a JSON text. Python takes up to 75 bytes for each, 225 MB together."""
JSON_DEPTH = 64
"""Deepest nesting of a JSON text. Manifests take 7."""
DIRECTORY_BYTES = 4 * MIB
"""Most bytes of a zip file's directory, which Python reads whole: some 40,000 members."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compressions that are read. Python decodes those of other kinds without a bound on the result."""
ENCRYPTED = 0x1
LOCAL_HEADER = 30
"""Bytes of a member's header before its name."""


@contextlib.contextmanager
def reading(error: type[PockError], damaged: str, missing: str = "") -> Iterator[None]:
    """Turn whatever a reader raises of a file's content into one line.

    ``damaged`` is the message, with ``{}`` for the reason; ``missing`` that of a file that is not there. Decoders of
    damaged bytes raise exceptions of any kind, so all but this project's are taken for the file's fault.
    """
    try:
        yield
    except PockError:
        raise
    except FileNotFoundError as fault:
        raise error(missing or damaged.replace("{}", reason(fault))) from fault
    except Exception as fault:
        raise error(damaged.replace("{}", reason(fault))) from fault


def reason(fault: BaseException) -> str:
    """Message of an exception, in one short line."""
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    if isinstance(fault, MemoryError):
        return "there is not enough memory"
    if isinstance(fault, RecursionError):
        return "it is nested too deeply"
    lines = (str(fault) if not isinstance(fault, KeyError) else f"{fault} is missing").strip().splitlines()
    line = lines[0] if lines else type(fault).__name__
    return line if len(line) <= 200 else f"{line[:197]}..."


def open_file(path: str | os.PathLike[str], most: int) -> BoundedFile:
    """Open a regular file of at most ``most`` bytes for reading.

    Raises
    ------
    OSError
        It is missing or forbidden, larger, or something else: a folder, a pipe, a device.
    """
    _check_regular(os.stat(path), most)  # noqa: PTH116 - before it is opened: a pipe would wait, a device may act
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        _check_regular(os.fstat(descriptor), most)
        return BoundedFile(io.FileIO(descriptor))
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a regular file of at most ``most`` bytes; raises as :func:`open_file`."""
    with open_file(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file of at most :data:`TEXT_BYTES`; raises OSError and ValueError as :func:`open_file` and
    :func:`parse_json`."""
    return parse_json(read_file(path, TEXT_BYTES))


def parse_json(data: bytes | str, *, depth: int = JSON_DEPTH, values: int = JSON_VALUES) -> Any:
    """Parse a JSON text.

    Raises
    ------
    ValueError
        It is no JSON, is nested deeper than ``depth``, or holds more than about ``values`` values.
    """
    text = data if isinstance(data, str) else data.decode()
    if sum(map(text.count, ",:[{")) > values:
        raise ValueError(f"it holds more than {values} values")
    try:
        parsed = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {depth} levels") from error
    level = [parsed]
    for _ in range(depth):
        level = [child for value in level if isinstance(value, dict | list) for child in _children(value)]
        if not level:
            return parsed
    raise ValueError(f"it is nested deeper than {depth} levels")


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


@contextlib.contextmanager
def open_archive(
    path: str | os.PathLike[str], most: int, *, expansion: float = 1, free: int = 0
) -> Iterator[zipfile.ZipFile]:
    """Open a zip file of at most ``most`` bytes whose members can be read without surprise.

    All together they have at most ``expansion`` times the bytes of the file, or ``free`` bytes if that is more. None is
    encrypted, and no name occurs twice.

    Raises
    ------
    OSError, ValueError, zipfile.BadZipFile
        It is no such file.
    """
    with open_file(path, most) as file:
        size = os.fstat(file.fileno()).st_size
        file.most = DIRECTORY_BYTES
        with zipfile.ZipFile(file) as archive:
            file.most = None
            members = archive.infolist()
            if len({member.filename for member in members}) != len(members):
                raise ValueError("two of its members have the same name")
            for member in members:
                if member.flag_bits & ENCRYPTED:
                    raise ValueError(f"its member {member.filename!r} is encrypted")
                if member.compress_type not in METHODS:
                    raise ValueError(f"its member {member.filename!r} is compressed in an unknown way")
            total = sum(member.file_size for member in members)
            if total > max(expansion * size, free):
                raise ValueError(f"its members take {_size(total)}, and the file {_size(size)}")
            yield archive


def read_member(archive: zipfile.ZipFile, name: str, most: int | None = None) -> bytes:
    """Read a member of an archive that :func:`open_archive` opened, of at most ``most`` bytes.

    Raises
    ------
    ValueError
        It is larger.
    KeyError, zipfile.BadZipFile, zlib.error
        It is missing, or damaged.
    """
    member = archive.getinfo(name)
    if most is not None and member.file_size > most:
        raise ValueError(f"its member {name!r} is larger than {_size(most)}")
    return archive.read(member)


def map_member(archive: zipfile.ZipFile, name: str) -> bytes | memoryview:
    """A member of an archive that :func:`open_archive` opened, as a view of the mapped file: what is not used takes no
    memory. One that is compressed is read.

    Raises
    ------
    ValueError, KeyError, zipfile.BadZipFile
        It is missing, or damaged.
    """
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or not member.file_size:
        return archive.read(member)
    pages = mmap.mmap(cast(BoundedFile, archive.fp).fileno(), 0, access=mmap.ACCESS_READ)
    names = int.from_bytes(pages[member.header_offset + 26 : member.header_offset + 28], "little")
    extra = int.from_bytes(pages[member.header_offset + 28 : member.header_offset + 30], "little")
    start = member.header_offset + LOCAL_HEADER + names + extra
    if start + member.file_size > len(pages):
        raise zipfile.BadZipFile(f"its member {name!r} ends behind the file")
    return memoryview(pages)[start : start + member.file_size]


def digest_of(archive: zipfile.ZipFile, name: str) -> str:
    """The SHA-256 of a member, read piece by piece."""
    with archive.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


class BoundedFile(io.BufferedReader):
    """A file opened for reading, of which a single read takes at most ``most`` bytes: ``zipfile`` reads as many as the
    file says."""

    most: int | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes, the rest by default; raises ValueError for more than ``most``."""
        if self.most is not None and size is not None and size > self.most:
            raise ValueError(f"its list of members is larger than {_size(self.most)}")
        return super().read(size)


def _check_regular(status: os.stat_result, most: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no regular file")
    if status.st_size > most:
        raise OSError(f"it is larger than {_size(most)}")


def _size(count: int) -> str:
    return f"{count} bytes" if count < MIB else f"{count / MIB:.1f} MiB"
