"""The trained part of a parameter: one type, from scheme to update kernel."""

from __future__ import annotations

from typing import NamedTuple


class TrainedPart(NamedTuple):
    """The channels or rows of a parameter that are trained; None stands for a parameter trained whole.

    The axis refers to the layout at hand: PyTorch's in a scheme, the module's in a pass.
    """

    axis: int
    indices: tuple[int, ...]
    """Positions along ``axis``, ascending."""
