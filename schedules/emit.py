"""Pieces of the kernels that are written as loops, on every target: loops and branches of TVM's IR builder, and values
of variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

INDEX = "int64"
"""Type of indices, until lowering narrows them."""


def unrolled(extent: int) -> AbstractContextManager[tirx.Var]:
    """Loop that is written out."""
    return T.unroll(tirx.const(extent, INDEX))


@contextmanager
def vector(lanes: int) -> Iterator[tirx.Expr]:
    """Loop over the lanes of a vector; the number 0 for one lane."""
    if lanes == 1:
        yield tirx.const(0, INDEX)
    else:
        with T.vectorized(tirx.const(lanes, INDEX)) as lane:
            IRBuilder.name("lane", lane)
            yield lane


@contextmanager
def where(condition: tirx.Expr | bool | None) -> Iterator[None]:
    """Branch without an alternative. None: always taken."""
    if condition is None:
        yield
    else:
        with T.If(condition), T.Then():
            yield


def substituted(node: Any, values: Mapping[tirx.Var, tirx.Expr | int]) -> Any:
    """Return an expression or a statement with the values of variables."""
    found = {var: tirx.const(value, INDEX) if isinstance(value, int) else value for var, value in values.items()}
    return tvm_ffi.structural_map(node, (tirx.Var, lambda var: found.get(var, var)))
