"""Memory that is given back as soon as it is dropped, and files that are mapped instead of read."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .reading import parse_json

ALIGNMENT = 64
"""Alignment of the arena and of states, in bytes: at least that of the offsets in a memory plan."""
LARGE = 64 * 1024
"""Bytes from which an array has pages of its own. The C library keeps what it gets back for a while, and reports of a
process's memory then count it."""
HUGE = 4 * 1024 * 1024
"""Bytes from which huge pages are asked for, as NumPy does: they spare the look-up of addresses."""


def aligned(shape: Sequence[int], dtype: str) -> np.ndarray:
    """An array of zeros that starts at a multiple of the alignment."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size < LARGE or not hasattr(mmap, "MAP_PRIVATE"):
        memory = np.zeros(size + ALIGNMENT, dtype=np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        return memory[start : start + size].view(dtype).reshape(shape)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype=dtype).reshape(shape)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A contiguous copy that starts at a multiple of the alignment."""
    copy = aligned(array.shape, str(array.dtype))
    copy[...] = array
    return copy


class Memory:
    """The memory of this process, in which a program runs. That of another machine is a subclass."""

    def allocate(self, shape: Sequence[int], dtype: str) -> Any:
        """An array of zeros that starts at a multiple of the alignment: with a ``nbytes``, and the rest by this
        class alone."""
        return aligned(shape, dtype)

    def copy_of(self, values: np.ndarray) -> Any:
        """A new array with these values."""
        array = self.allocate(values.shape, str(values.dtype))
        self.write(array, values)
        return array

    def address(self, array: Any) -> int:
        """Where a kernel finds an array."""
        return array.ctypes.data

    def read(self, array: Any) -> np.ndarray:
        """The values of an array: to look at, not to write to."""
        return array

    def write(self, array: Any, values: ArrayLike) -> None:
        """Put values into an array."""
        if isinstance(values, np.ndarray):
            np.copyto(array, values, casting="same_kind")
        else:
            array[...] = values

    def move(self, to: tuple[Any, int], source: tuple[Any, int], size: int) -> None:
        """Copy so many bytes: from an offset within one array to one within another."""
        addresses = [self.address(array) + offset for array, offset in (to, source)]
        ctypes.memmove(addresses[0], addresses[1], size)


def drop_pages(array: np.ndarray) -> None:
    """Give back the memory that pages of a file take, if an array is a view of a mapped one: they are read again."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    # What can be written is no file's.
    if (
        isinstance(base, memoryview)
        and base.readonly
        and isinstance(base.obj, mmap.mmap)
        and hasattr(mmap, "MADV_DONTNEED")
    ):
        base.obj.madvise(mmap.MADV_DONTNEED)


DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
"""NumPy's names of the types that a safetensors file knows."""


def tensors_in(data: memoryview) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, as views of it: nothing is read before it is used.

    Raises
    ------
    ValueError
        The file is damaged.
    """
    length = int.from_bytes(data[:8], "little")
    header, body = parse_json(bytes(data[8 : 8 + length])), data[8 + length :]
    arrays = {}
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        (start, end), shape, dtype = tensor["data_offsets"], tensor["shape"], np.dtype(DTYPES[tensor["dtype"]])
        if not 0 <= start <= end <= len(body) or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"'{name}' lies outside the file")
        arrays[name] = np.frombuffer(body[start:end], dtype=dtype).reshape(shape)
    return arrays
