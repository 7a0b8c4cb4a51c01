"""Amounts as people write them."""

from __future__ import annotations

import re

from .device.arguments import Kind, is_number
from .errors import PockError

SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "min": 60.0, "h": 3600.0}
BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _is_amount(value: object) -> bool:
    return isinstance(value, str) or is_number(value)


AMOUNT = Kind("an amount of memory: '64MB', or a number of bytes", _is_amount)


def parse_bytes(text: str | int) -> int:
    """An amount of memory: a number of bytes, or a text such as ``64MB`` (10^6) or ``1.5 GiB`` (2^30).

    Raises
    ------
    PockError
        The text is no amount of memory.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", str(text))
    if isinstance(text, bool) or found is None or found[2].upper() not in BYTES or float(found[1]) == 0:
        raise PockError(f"{text!r} is no amount of memory: write 64MB, 1.5GiB, or a number of bytes")
    return int(float(found[1]) * BYTES[found[2].upper()])


def parse_seconds(text: str) -> float:
    """A time: ``20ms``, ``1.5 s``, ``300us``, ``30m``, ``2h``; a plain number is in seconds.

    Raises
    ------
    PockError
        The text is no time.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].lower() not in SECONDS or float(found[1]) == 0:
        raise PockError(f"{text!r} is no time: write 20ms, 1.5s, or a number of seconds")
    return float(found[1]) * SECONDS[found[2].lower()]
