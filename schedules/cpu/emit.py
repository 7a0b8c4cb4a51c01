"""Pieces of the kernels that are written as loops. All are context managers of TVM's IR builder, or write to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ..emit import INDEX

Number: TypeAlias = tirx.Expr | int


def loop(extent: Number) -> AbstractContextManager[tirx.Var]:
    """Loop one after the other."""
    return T.serial(tirx.const(extent, INDEX) if isinstance(extent, int) else extent)


def buffer(name: str, extent: int, dtype: str, scope: str = "global") -> tirx.Buffer:
    """Memory of a task: registers in scope ``local``."""
    made = T.alloc_buffer((extent,), dtype, scope=scope, layout=None)
    IRBuilder.name(name, made)
    return made


def unravelled(position: tirx.Expr, extents: Sequence[int]) -> list[tirx.Expr]:
    """Return the index along each axis of an element, by its place in row-major order."""
    places = []
    for axis, extent in enumerate(extents):
        behind = math.prod(extents[axis + 1 :])
        place = position if behind == 1 else tirx.floordiv(position, behind)
        places.append(place if axis == 0 else tirx.floormod(place, extent))
    return places
