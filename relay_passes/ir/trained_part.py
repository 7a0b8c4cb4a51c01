"""The trained part of a parameter: one type, from scheme to update kernel."""

from __future__ import annotations

from typing import NamedTuple


class TrainedPart(NamedTuple):
    """Channels or rows of a parameter that is trained in part; a parameter trained whole has None in its place.

    The axis is one of the layout at hand: PyTorch's in a scheme, the module's in a pass.
    """

    axis: int
    indices: tuple[int, ...]
    """Positions along ``axis``, ascending."""
