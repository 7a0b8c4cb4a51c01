"""Checks the form of what was read from JSON, against a description that looks like it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arguments import is_whole

MOST_EXTENT = 2**40
"""Most elements along an axis, most bytes of an arena, and the like."""


@dataclass(frozen=True)
class Each:
    """An object with any names, whose values all have one form."""

    form: Any


@dataclass(frozen=True)
class Maybe:
    """An entry that may be missing or null."""

    form: Any


def check_form(value: Any, form: Any, place: str) -> None:
    """Check a value against a form.

    A form is a type, a function that tells whether it holds, ``[form]`` (a list of such), a mapping of names to forms
    (an object with at least these), :class:`Each` or :class:`Maybe`.

    Raises
    ------
    ValueError
        Names the place, such as ``inputs[0].shape``.
    """
    if isinstance(form, Maybe):
        if value is not None:
            check_form(value, form.form, place)
    elif isinstance(form, type):
        _require(isinstance(value, form) and (form in (bool, object) or not isinstance(value, bool)), place)
    elif isinstance(form, list):
        _require(isinstance(value, list | tuple), place)
        for number, child in enumerate(value):
            check_form(child, form[0], f"{place}[{number}]")
    elif isinstance(form, Each):
        _require(isinstance(value, Mapping), place)
        for name, child in value.items():
            check_form(child, form.form, f"{place}.{name}")
    elif isinstance(form, Mapping):
        _require(isinstance(value, Mapping), place)
        for name, child in form.items():
            if name not in value and not isinstance(child, Maybe):
                raise ValueError(f"{place}.{name} is missing")
            check_form(value.get(name), child, f"{place}.{name}")
    else:
        _require(form(value), place)


def _require(holds: bool, place: str) -> None:
    if not holds:
        raise ValueError(f"{place[:100]} is not as it should be")


def is_extent(value: Any) -> bool:
    """Whether a value is a size or an offset."""
    return is_whole(value) and 0 <= value <= MOST_EXTENT


def is_real(value: Any) -> bool:
    """Whether a value is a number, infinities and NaN included."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_shape(value: Any) -> bool:
    """Whether a value is the shape of an array that could be."""
    return (
        isinstance(value, list | tuple)
        and len(value) <= 32
        and all(map(is_extent, value))
        and int(np.prod([max(extent, 1) for extent in value], dtype=object)) <= MOST_EXTENT
    )


def is_dtype(value: Any) -> bool:
    """Whether a value names a type of numbers of NumPy."""
    return isinstance(value, str) and value in NUMBERS


NUMBERS = frozenset(
    [
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
        "bool",
        "float16",
        "float32",
        "float64",
        "complex64",
    ]
)
"""Types of numbers that a file may name."""
