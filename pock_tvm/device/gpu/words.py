"""Sizes and copies in whole words, for devices that know no other."""

from __future__ import annotations

from ..errors import DeviceError
from .backend import CopyBytes, Region

WORD = 4
"""Bytes of a word."""


def in_words(region: Region) -> Region:
    """Return a region with the rest of its last word: nothing else lies there."""
    return Region(region.buffer, region.offset, whole_words(region.size))


def whole_words(size: int) -> int:
    """Return a size in bytes, rounded up to whole words."""
    return -(-size // WORD) * WORD


def copy_in_words(copy: CopyBytes, device: str) -> CopyBytes:
    """Return a copy of whole words.

    Raises
    ------
    DeviceError
        It begins in the middle of a word.
    """
    if (copy.to.offset | copy.source.offset) % WORD:
        raise DeviceError(
            f"{device} copies words of {WORD} bytes, and the program copies from the middle of one: compile it with a "
            f"batch that is a multiple of {WORD}"
        )
    return CopyBytes(in_words(copy.to), in_words(copy.source))
