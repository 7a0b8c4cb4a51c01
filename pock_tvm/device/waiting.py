"""Lets TVM's threads keep their cores while they wait for each other.

TVM's pool gives its core away at every look at what it waits for (``sched_yield`` in ``src/runtime/thread_pool.cc``).
Beside processes that are busy, Linux then lets these run for some milliseconds: at each of the hundreds of kernels of a
step. A step of MobileNetV2 of 13 ms took 1588 ms beside two busy processes, and takes 14 ms so.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Iterator
from typing import Any

LIBRARY = b"libtvm_runtime.so"
YIELD, INSTEAD = b"sched_yield", "getppid"
"""The function that the pool calls while it spins, and a system call as short that does not yield."""
DYNAMIC, READ_ONLY = 2, 0x6474E552
"""Kinds of segments of an ELF file: PT_DYNAMIC, PT_GNU_RELRO."""
NONE, CALLS_BYTES, STRINGS, SYMBOLS, CALLS = 0, 2, 5, 6, 23
"""Entries of the dynamic segment: DT_NULL, DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_JMPREL."""


class _Library(ctypes.Structure):
    """``struct dl_phdr_info`` of <link.h>: a library as it is loaded."""

    _fields_ = (
        ("base", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("segments", ctypes.c_size_t),
        ("count", ctypes.c_uint16),
    )


def keep_cores() -> bool:
    """Let TVM's pool wait without giving its cores away, in this process. Returns whether that could be done: on Linux
    with 64 bits, where the library calls the system by a table that may be written."""
    found = places()
    for place in found:
        ctypes.c_size_t.from_address(place).value = address_of(INSTEAD)
    return bool(found)


def address_of(function: str) -> int:
    """Return the address of a function of the C library."""
    return ctypes.cast(getattr(ctypes.CDLL(None), function), ctypes.c_void_p).value or 0


def places() -> list[int]:
    """Return where TVM's library, if it is loaded, keeps the address of what it calls to yield; none where that cannot
    be written."""
    found: list[int] = []
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_size_t) != 8:
        return found

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Library), ctypes.c_size_t, ctypes.c_void_p)
    def look(library: Any, _size: int, _data: object) -> int:
        if library.contents.name.endswith(LIBRARY):
            found.extend(_places(library.contents))
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(look, None)
    return found


def _places(library: _Library) -> Iterator[int]:
    """Yield where a library keeps the address of the function that it calls to yield, if that may be written."""
    read_only, entries = range(0), dict[int, int]()
    for number in range(library.count):
        segment = ctypes.string_at(library.segments + 56 * number, 56)
        kind, _, _, start, _, _, size, _ = struct.unpack("<IIQQQQQQ", segment)
        if kind == DYNAMIC:
            entries = dict(_entries(library.base + start))
        if kind == READ_ONLY:
            read_only = range(library.base + start, library.base + start + size)
    if not entries.keys() >= {STRINGS, SYMBOLS, CALLS, CALLS_BYTES}:
        return  # it calls nothing by a table
    strings, symbols, calls = (_absolute(library, entries[each]) for each in (STRINGS, SYMBOLS, CALLS))
    for at in range(calls, calls + entries[CALLS_BYTES], 24):
        offset, info, _ = struct.unpack("<QQq", ctypes.string_at(at, 24))
        (name,) = struct.unpack("<I", ctypes.string_at(symbols + 24 * (info >> 32), 4))
        if ctypes.string_at(strings + name) == YIELD and library.base + offset not in read_only:
            yield library.base + offset


def _entries(at: int) -> Iterator[tuple[int, int]]:
    """Yield the entries of a dynamic segment."""
    while True:
        kind, value = struct.unpack("<qQ", ctypes.string_at(at, 16))
        if kind == NONE:
            return
        yield kind, value
        at += 16


def _absolute(library: _Library, address: int) -> int:
    """Return an address of a dynamic segment, which some loaders leave relative to the library."""
    return address if address >= library.base else library.base + address
