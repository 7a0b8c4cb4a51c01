"""The memory of a GPU, in which a program runs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..memory import Memory
from .backend import Backend, CopyBytes, Region

SPACE = 2**44
"""Bytes between the addresses of buffers, more than any has."""


@dataclass(frozen=True)
class DeviceArray:
    """An array in a device's memory."""

    buffer: Any
    start: int
    """Address: that of a buffer is its number times ``SPACE``."""
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class DeviceMemory(Memory):
    """The memory of a GPU. Addresses are numbers that only :meth:`region` understands."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._count = 0
        self._arrays: weakref.WeakValueDictionary[int, DeviceArray] = weakref.WeakValueDictionary()

    def allocate(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = self._backend.allocate(max(size, 4))
        self._count += 1
        array = DeviceArray(buffer, self._count * SPACE, tuple(shape), str(dtype))
        self._arrays[self._count] = array
        return array

    def address(self, array: DeviceArray) -> int:
        return array.start

    def region(self, address: int, size: int | None = None) -> Region:
        """The region of so many bytes at an address, or what lies there to the buffer's end."""
        number, offset = divmod(address, SPACE)
        array = self._arrays[number]
        return Region(array.buffer, offset, array.nbytes - offset if size is None else size)

    def read(self, array: DeviceArray) -> np.ndarray:
        values = self._backend.read(Region(array.buffer, 0, array.nbytes))
        return values.view(array.dtype).reshape(array.shape)

    def write(self, array: DeviceArray, values: ArrayLike) -> None:
        local = np.empty(array.shape, array.dtype)
        np.copyto(local, values, casting="same_kind")
        if local.dtype.kind in "iu" and 8 * local.itemsize > self._backend.integer_bits:
            self._refuse_wide(local)
        if local.nbytes:
            self._backend.write(Region(array.buffer, 0, array.nbytes), local.reshape(-1).view("uint8"))

    def _refuse_wide(self, values: np.ndarray) -> None:
        """Refuse integers that kernels would cut."""
        bits = self._backend.integer_bits
        beyond = values[(values < -(2 ** (bits - 1))) | (values >= 2 ** (bits - 1))]
        if beyond.size:
            raise InputError(
                f"{self._backend.name} computes with integers of {bits} bits, and {beyond[0]} is beyond them: give "
                "smaller ones, or take another device"
            )

    def move(self, to: tuple[Any, int], source: tuple[Any, int], size: int) -> None:
        regions = [Region(array.buffer, offset, size) for array, offset in (to, source)]
        self._backend.submit(self._backend.record([CopyBytes(*regions)]))
