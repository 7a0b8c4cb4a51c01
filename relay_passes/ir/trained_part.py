"""The trained part of a parameter: one type, from scheme to update kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias


class TrainedPart(NamedTuple):
    """The channels or rows of a parameter that are trained; None stands for a parameter trained whole.

    The axis refers to the layout at hand: PyTorch's in a scheme, the module's in a pass.
    """

    axis: int
    indices: tuple[int, ...]
    """Positions along ``axis``, ascending."""


Trained: TypeAlias = Mapping[str, TrainedPart | None]
"""The trained parameters by name, with the trained part of each; None for all of it."""


def plain_parts(trained: Mapping[str, tuple[int, Sequence[int]] | None]) -> dict[str, TrainedPart | None]:
    """Trained parameters whose parts may be pairs of any kind, such as ``(axis, [index, …])``."""
    return {name: part and TrainedPart(part[0], tuple(part[1])) for name, part in trained.items()}
