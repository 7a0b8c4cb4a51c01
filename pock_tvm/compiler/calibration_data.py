"""Reads the data that frozen layers in eight bits are calibrated with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..device.arguments import described
from ..device.arrays import check_array
from ..device.inputs import named_inputs
from ..errors import DataError, InputError
from ..frontend.model import TensorSpec

MOST_BATCHES = 16
"""Batches that are read: ranges change little beyond."""


def calibration_batches(data: Any, specs: Sequence[TensorSpec]) -> list[dict[str, np.ndarray]]:
    """Read batches of a network's inputs, at most :data:`MOST_BATCHES`.

    ``data`` is an array of samples, a mapping from inputs to such arrays, or a sequence of batches ``(x, y)`` whose
    ``x`` is what a trainer's step takes. A last, smaller batch is filled up with its own samples.

    Raises
    ------
    DataError
        There are no samples, or they are not finite, or all the same number.
    InputError
        An input is missing, or has another shape or type.
    """
    found: list[dict[str, np.ndarray]] = []
    for batch in _batches(data, specs):
        for spec in specs:
            array, what = batch[spec.name], f"input '{spec.name}' of the calibration data"
            check_array(what, array, spec.shape, spec.dtype)
            if not np.isfinite(array).all():
                raise DataError(f"{what} is not finite: leave such samples out")
        found.append(batch)
        if len(found) == MOST_BATCHES:
            break
    if not found:
        raise DataError("the calibration data holds no samples: frozen='int8' takes ranges from some hundred")
    if all(_is_constant([batch[spec.name] for batch in found]) for spec in specs):
        raise DataError(
            f"the calibration data is {found[0][specs[0].name].flat[0]} everywhere, which gives no range: take samples "
            "like those of training"
        )
    return found


def _batches(data: Any, specs: Sequence[TensorSpec]) -> Iterator[dict[str, np.ndarray]]:
    """Cut samples into batches of the program's size."""
    names = [spec.name for spec in specs]
    for x in _parts(data):
        arrays = named_inputs(x, names, of="the calibration data")
        first = arrays[names[0]]
        batch, count = (specs[0].shape[0], len(first)) if specs[0].shape and first.ndim else (1, 1)
        # An array of another length than the samples belongs to all of them.
        whole = {name: array for name, array in arrays.items() if array.shape[:1] != (count,)}
        for start in range(0, count, batch):
            yield {name: whole[name] if name in whole else _cut(arrays[name], start, batch) for name in names}


def _parts(data: Any) -> Iterator[Any]:
    if isinstance(data, Mapping) or hasattr(data, "shape"):
        yield data
        return
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise InputError(
            f"calibrate_with is an array of samples, or a sequence of batches (x, y), not {described(data)}"
        )
    for batch in data:
        yield batch[0] if isinstance(batch, tuple | list) else batch


def _is_constant(arrays: Sequence[np.ndarray]) -> bool:
    return all((array == arrays[0].flat[0]).all() for array in arrays)


def _cut(array: np.ndarray, start: int, batch: int) -> np.ndarray:
    part = array[start : start + batch]
    return part if len(part) == batch else np.resize(part, (batch, *part.shape[1:]))
