"""Reads what a program's kernels take and call: ELF files, as all targets without a system have."""

from __future__ import annotations

import io
from typing import Any

from ...errors import PockError

ALLOCATED, NO_BITS = 2, "SHT_NOBITS"
UNUSED = "tvm.fp16"
"""Part of the names of sections that every object has, and that no kernel here calls: a linker drops them."""


def undefined(code: bytes) -> set[str]:
    """The symbols that an object leaves undefined.

    Raises
    ------
    PockError
        The reader of such files is not installed.
    """
    table = _elf(code).get_section_by_name(".symtab")
    return {each.name for each in table.iter_symbols() if each["st_shndx"] == "SHN_UNDEF" and each.name}


def loaded_bytes(code: bytes) -> int:
    """The bytes of an object that are loaded: code and constants.

    Raises
    ------
    PockError
        The reader of such files is not installed.
    """
    return sum(
        section["sh_size"]
        for section in _elf(code).iter_sections()
        if section["sh_flags"] & ALLOCATED and section["sh_type"] != NO_BITS and UNUSED not in section.name
    )


def _elf(code: bytes) -> Any:
    try:
        from elftools.elf.elffile import ELFFile
    except ImportError as error:
        raise PockError(
            "kernels for a device without a system are read by pyelftools: pip install 'pock-tvm[deploy]'"
        ) from error
    return ELFFile(io.BytesIO(code))
