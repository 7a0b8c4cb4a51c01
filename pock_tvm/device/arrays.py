"""Reads and checks what a user hands to a trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .arguments import described
from .errors import InputError

NUMBERS = "biufc"
"""NumPy's kinds of types that are numbers."""


def as_array(what: str, value: Any) -> np.ndarray:
    """The numbers of an array, a sequence, or a torch tensor, whether it requires a gradient or not; bfloat16, which
    NumPy lacks, as float32."""
    if type(value) is np.ndarray and value.dtype.kind in NUMBERS:
        return value  # as in most steps, where time counts
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        array = np.asarray(value)
        if array.dtype.kind == "V" and array.dtype.name == "bfloat16":  # asking for a name takes microseconds
            array = array.astype("float32")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} cannot be read as an array: {str(error).splitlines()[0]}") from error
    if array.dtype.kind not in NUMBERS:
        raise InputError(f"{what} is an array of numbers, not {described(value)}")
    return array


def pairs_of(data: Any) -> Iterator[tuple[Any, Any]]:
    """The batches of a data set, each an ``(x, y)``."""
    what = "data to evaluate is a sequence of batches (x, y)"
    if not isinstance(data, Iterable) or isinstance(data, str | Mapping):
        raise InputError(f"{what}, not {described(data)}")
    for batch in data:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError(f"{what}; one of them is {described(batch)}")
        yield batch[0], batch[1]


def check_array(what: str, array: np.ndarray, shape: Sequence[int], dtype: str | np.dtype) -> None:
    """Refuse an array of another shape or type than a program was compiled for; integers of any width will do, and
    floats of fewer bits."""
    if array.shape == shape and array.dtype == dtype:
        return
    if list(array.shape) != list(shape):
        raise InputError(f"{what} has the shape {array.shape}; the program was compiled for {tuple(shape)}")
    wanted = np.dtype(dtype)
    is_integer = array.dtype.kind in "iu" and wanted.kind in "iu"
    is_shorter = array.dtype.kind == wanted.kind == "f" and array.itemsize < wanted.itemsize
    if array.dtype != wanted and not is_integer and not is_shorter:
        how = f"convert it, by .astype('{wanted}') or .to(torch.{wanted})"
        raise InputError(f"{what} is of type {array.dtype}; the program takes {wanted}: {how}")


FEW = 256
"""Most integers that are compared as Python's own: after a step NumPy's code is in no cache, and Python's is. From
measurements of a step of MobileNetV2: 13 us less."""


def bounds(integers: np.ndarray) -> tuple[int, int]:
    """The lowest and the highest of some integers; (0, -1) of none."""
    if integers.size > FEW:
        return int(integers.min()), int(integers.max())
    values = integers.ravel().tolist()
    return min(values, default=0), max(values, default=-1)


def count_of(value: int, integers: np.ndarray) -> int:
    """How many of some integers are ``value``."""
    if integers.size > FEW:
        return int(np.count_nonzero(integers == value))
    return integers.ravel().tolist().count(value)
