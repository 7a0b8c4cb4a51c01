"""Checksums of arrays: CRC-32, which a device without a library of hashes computes in a few lines of C."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np


def crc32(data: np.ndarray | bytes | bytearray | memoryview) -> str:
    """The CRC-32 (ISO 3309, as zlib) of some bytes, or of an array's in C order, as eight hexadecimal digits."""
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    return f"{zlib.crc32(data):08x}"


def weight_checksums(weights: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The CRC-32 of each weight in PyTorch's layout: a manifest has them, so that a checkpoint can tell whether it was
    trained with the same frozen weights."""
    return {name: crc32(array) for name, array in weights.items()}
