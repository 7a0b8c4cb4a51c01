"""Moves arrays of trained parts between a program's layout, PyTorch's, and other trained parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .parameters import FULL, GRADIENT_SUM, Layout, Parameter
from .state import State


def part_shape(shape: tuple[int, ...], trained: Any) -> tuple[int, ...]:
    """The shape in PyTorch's layout of what is trained of an array of ``shape``."""
    if trained == FULL:
        return tuple(shape)
    axis = trained["axis"]
    return (*shape[:axis], len(trained["indices"]), *shape[axis + 1 :])


def stored_part(owner: Parameter, values: np.ndarray) -> np.ndarray:
    """Optimizer state of a parameter as the program stores it, from PyTorch's layout."""
    if owner.layout is None:
        return values
    return values.reshape(reshaped(owner, owner.layout)).transpose(owner.layout.axes)


def unstored_part(owner: Parameter, values: np.ndarray) -> np.ndarray:
    """Optimizer state of a parameter in PyTorch's layout, from the one that the program stores."""
    if owner.layout is None:
        return np.array(values)
    unstored = values.transpose(np.argsort(owner.layout.axes))
    return np.array(unstored.reshape(part_shape(owner.shape, owner.trained)), order="C")


def reshaped(owner: Parameter, layout: Layout) -> tuple[int, ...]:
    """The shape that a layout reshapes to, with the trained indices alone along their axis."""
    shape, trained = layout.shape, owner.trained
    if trained == FULL:
        return shape
    at, joined = place_of_axis(owner.shape, trained["axis"], shape)
    return (*shape[:at], len(trained["indices"]) * joined, *shape[at + 1 :])


def place_of_axis(shape: Sequence[int], axis: int, reshaped: Sequence[int]) -> tuple[int, int]:
    """The axis of a reshaped array that holds an axis of the original, and how many places each index has there: more
    than one where axes behind it have joined it."""
    before, extent = math.prod(shape[:axis]), shape[axis]
    found = [(at, size // extent) for at, size in enumerate(reshaped) if math.prod(reshaped[:at]) == before]
    return next((at, joined) for at, joined in found if reshaped[at] == extent * joined)


def states_of(parameters: Mapping[str, Parameter], arrays: Mapping[str, np.ndarray]) -> tuple[State, ...]:
    """Optimizer state and gradient sums in PyTorch's layout, from the arrays that a program stores them in."""
    return tuple(
        State(each.slot or GRADIENT_SUM, each.of, owner.trained, unstored_part(owner, arrays[name]))
        for name, each in parameters.items()
        if each.is_state
        for owner in (parameters[each.of],)
    )


def moved_part(values: np.ndarray, old: Any, new: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, int, int]:
    """Values of one trained part at the positions of another, in PyTorch's layout; zeros where there was none.

    ``shape`` is the parameter's. Also returns how many elements that are not zero have no place any more, and how many
    had no value yet.
    """
    if old == new:
        return values, 0, 0
    whole, known, wanted = np.zeros(shape, values.dtype), np.zeros(shape, bool), np.zeros(shape, bool)
    whole[_index(old)], known[_index(old)], wanted[_index(new)] = values, True, True
    lost = np.count_nonzero(whole[known & ~wanted])
    return np.ascontiguousarray(whole[_index(new)]), int(lost), int(np.count_nonzero(wanted & ~known))


def _index(trained: Any) -> tuple[Any, ...]:
    return (...,) if trained == FULL else (*[slice(None)] * trained["axis"], trained["indices"])
