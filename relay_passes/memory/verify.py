"""Checks of phase 9: memory placement, derived from plans and call lists alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import tvm
from tvm import IRModule, tirx

from ..analysis.live_ranges import SCRATCH
from ..analysis.verify import functions_of
from .call_list import ATTRIBUTE, CallList, Check, Copy, Place, Region, call_list_of


def ranges_are_apart(mod: IRModule) -> Iterator[str]:
    """Check that overlapping live ranges share no bytes of the arena, and that all lie inside it."""
    for name, func in functions_of(mod):
        regions = [Region(str(region), *map(int, numbers)) for region, *numbers in func.attrs["arena_map"]]
        yield from (f"in '{name}' {broken}" for broken in _shared(regions, int(func.attrs["arena_bytes"])))


def _shared(regions: Sequence[Region], size: int) -> Iterator[str]:
    numbers = np.array([region[1:] for region in regions], dtype=np.int64).reshape(-1, 4)
    offset, length, first, last = numbers.T
    for index in np.flatnonzero((offset < 0) | (offset + length > size)).tolist():
        yield f"'{regions[index].name}' lies outside the arena of {size} bytes"
    for index in range(len(regions)):
        rest = slice(index + 1, None)
        at_once = (first[rest] <= last[index]) & (first[index] <= last[rest])
        same = (offset[rest] < offset[index] + length[index]) & (offset[index] < offset[rest] + length[rest])
        for other in np.flatnonzero(at_once & same).tolist():
            yield f"'{regions[index].name}' and '{regions[index + 1 + other].name}' share bytes while both are in use"


def operands_are_inside(mod: IRModule) -> Iterator[str]:
    """Check that every operand lies inside its tensor or, in the arena, inside a region in use at that call."""
    sizes = {
        var.name_hint: [_bytes(param.ty.shape, str(param.ty.dtype)) for param in func.params]
        for var, func in mod.functions.items()
        if isinstance(func, tirx.PrimFunc) and not (func.attrs and ATTRIBUTE in func.attrs)
    }
    for var, func in mod.functions.items():
        if func.attrs is None or ATTRIBUTE not in func.attrs:
            continue
        calls = call_list_of(func)
        for number, call in enumerate(calls.calls):
            if isinstance(call, Copy):
                operands = [(call.to, call.size), (call.source, call.size)]
            elif isinstance(call, Check):
                checked = [(call.place, call.count), *([call.other] if call.other else [])]
                operands = [(place, _bytes([count], call.dtype)) for place, count in checked]
            else:
                params, scratch = sizes.get(call.kernel, []), _scratch(calls, number)
                if len(call.operands) != len(params) + len(scratch):
                    yield f"call {number} of '{var.name_hint}' gives '{call.kernel}' {len(call.operands)} operands"
                    continue
                if list(call.operands[len(params) :]) != scratch:
                    yield f"call {number} of '{var.name_hint}' gives '{call.kernel}' the scratch of another call"
                operands = list(zip(call.operands, params, strict=False))
            for place, size in operands:
                if not _is_inside(calls, number, place, size):
                    yield f"call {number} of '{var.name_hint}' has {size} bytes at {tuple(place)}, which lie outside"


def _scratch(calls: CallList, number: int) -> list[Place]:
    """Return the place of the scratch that is in use during a call: none if it has none."""
    regions = [each for each in calls.workspace.regions if each.name == SCRATCH and each.first == number == each.last]
    return [Place(calls.arena, region.offset) for region in regions]


def _is_inside(calls: CallList, number: int, place: Place, size: int) -> bool:
    if place.position != calls.arena:
        _, shape, dtype = calls.table[place.position]
        return 0 <= place.offset <= _bytes(shape, dtype) - size
    return any(
        region.first <= number <= region.last and region.offset <= place.offset <= region.offset + region.size - size
        for region in calls.workspace.regions
    )


def _bytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(int(extent) for extent in shape) * tvm.DataType(dtype).itemsize
