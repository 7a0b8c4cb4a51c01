"""Operands that a device function takes twice become one: a kernel that updates in place has two views of it."""

from __future__ import annotations

import dataclasses

import tvm_ffi
from tvm import tirx

from ..lower import Launch


def merge_views(func: tirx.PrimFunc, launch: Launch) -> tuple[tirx.PrimFunc, Launch]:
    """Return a device function and its launch with each operand once.

    No dialect lets two pointers of one launch overlap unless it is told so, and a device binds few.
    """
    first: dict[tuple[int, int], tirx.Var] = {}
    twins: dict[tirx.Var, tirx.Var] = {}
    for param, operand in zip(func.params, launch.operands, strict=True):
        twins[param] = first.setdefault(operand, param)
    if len(first) == len(twins):
        return func, launch
    body = tvm_ffi.structural_mutate(func.body, (tirx.Var, lambda var, _: twins.get(var, var)))
    merged = tirx.PrimFunc(list(first.values()), body, func.ret_type, func.attrs)
    return merged, dataclasses.replace(launch, operands=tuple(first))
