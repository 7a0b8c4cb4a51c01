"""Memory order of a tensor that is only reshaped and transposed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Piece = tuple[int, int]
"""Stride in the original tensor, in elements, and extent."""
Order = tuple[Piece, ...]
"""Pieces of the original's elements, outermost first, as they lie in memory. A reshape does not change it."""


def original(size: int) -> Order:
    """Return the order of a tensor of ``size`` elements that nothing has moved."""
    return _joined([(1, size)])


def permuted(order: Order, shape: Sequence[int], axes: Sequence[int]) -> Order | None:
    """Return the order after a transpose of a tensor of ``shape``; None if an axis cuts through a piece."""
    waiting, by_axis = list(order), list[list[Piece]]()
    for extent in shape:
        own: list[Piece] = []
        while extent > 1:
            stride, size = waiting.pop(0)
            if size > extent:
                if size % extent:
                    return None
                waiting.insert(0, (stride, size // extent))
                stride, size = stride * (size // extent), extent
            if extent % size:
                return None
            own.append((stride, size))
            extent //= size
        by_axis.append(own)
    return _joined([piece for axis in axes for piece in by_axis[axis]])


def transpose_between(source: Order, result: Order) -> tuple[list[int], list[int]] | None:
    """Return the shape and the permutation that bring one order into another; None if they share no pieces."""
    cuts = {edge for stride, size in (*source, *result) for edge in (stride, stride * size)}
    old, new = _cut(source, cuts), _cut(result, cuts)
    if old is None or new is None or sorted(old) != sorted(new):
        return None
    # Neighbours in both orders are one axis.
    runs: list[list[int]] = []
    for at in map(old.index, new):
        if runs and at == runs[-1][-1] + 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    ordered = sorted(runs)
    return [math.prod(old[at][1] for at in run) for run in ordered], [ordered.index(run) for run in runs]


def _joined(pieces: Sequence[Piece]) -> Order:
    """Join neighbours that are contiguous in the original, and drop pieces of one element."""
    joined: list[Piece] = []
    for stride, size in pieces:
        if size == 1:
            continue
        if joined and joined[-1][0] == stride * size:
            joined[-1] = (stride, joined[-1][1] * size)
        else:
            joined.append((stride, size))
    return tuple(joined)


def _cut(order: Order, cuts: set[int]) -> list[Piece] | None:
    """Cut pieces at the strides ``cuts`` inside them; None if one does not divide."""
    pieces: list[Piece] = []
    for stride, size in order:
        edges = sorted({stride, stride * size, *(cut for cut in cuts if stride < cut < stride * size)}, reverse=True)
        for high, low in itertools.pairwise(edges):
            if high % low:
                return None
            pieces.append((low, high // low))
    return pieces
