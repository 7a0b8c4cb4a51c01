"""Parts of vectors, and vectors of parts."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import tirx

ARM_LANES = 4
"""Words of a vector of NEON."""


def lanes_of(value: tirx.Expr) -> int:
    """Return the lanes of a vector; 1 for a number."""
    return int(tvm.DataType(str(value.ty.dtype)).lanes)


def shuffled(vectors: Sequence[tirx.Expr], lanes: Sequence[int]) -> tirx.Expr:
    """Return a vector of some lanes of several vectors, which are counted on from one to the next."""
    if len(vectors) == 1 and list(lanes) == list(range(lanes_of(vectors[0]))):
        return vectors[0]
    return tirx.Shuffle(list(vectors), [tirx.IntImm("int32", lane) for lane in lanes])


def concatenated(vectors: Sequence[tirx.Expr]) -> tirx.Expr:
    """Join vectors, one behind the other."""
    return shuffled(vectors, range(sum(map(lanes_of, vectors))))
