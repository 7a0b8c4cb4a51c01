"""The plan, checked by code that shares nothing with the planner: no two temporaries overlap while both are in use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from pock_tvm.device import memory
from relay_passes.analysis.live_ranges import ALIGNMENT, LiveRange
from relay_passes.kernels import slice_forward
from relay_passes.memory.placement import lower_bound, place
from tests.relay_passes.modules import model, operators, trained_phases


def memory_map(func) -> list[tuple[int, int, int, int]]:
    """(first step, last step, first byte, end) of every temporary, worked out from the function alone."""
    steps = [binding for block in func.body.blocks for binding in block.bindings]
    offsets = [[int(offset) for offset in entry] for entry in func.attrs["arena_offsets"]]
    regions: list[list[int]] = []
    behind: dict[object, list[int]] = {}  # variable -> numbers of the regions whose memory it is
    joined: list[list[int]] = []  # for each join the regions that are its parts

    def walk(expr, visit) -> None:
        if isinstance(expr, relax.Tuple):
            for part in expr.fields:
                walk(part, visit)
        elif isinstance(expr, relax.Call):
            for part in expr.args:
                walk(part, visit)
        elif isinstance(expr, relax.TupleGetItem):
            walk(expr.tuple_value, visit)
        else:
            visit(expr)

    for number, binding in enumerate(steps):
        value, found = binding.value, []
        walk(
            value, lambda leaf, found=found: found.extend(behind.get(leaf, [])) if isinstance(leaf, relax.Var) else None
        )
        name = getattr(getattr(value, "op", None), "name", "")
        if name == "relax.call_tir":
            for region in found:
                regions[region][1] = number
            types = binding.var.ty.fields if isinstance(binding.var.ty, relax.TupleType) else [binding.var.ty]
            mine = []
            for offset, ty in zip(offsets[number][: len(types)], types, strict=True):
                size = int(np.prod([int(extent) for extent in ty.shape])) * max(
                    1, np.dtype(str(ty.dtype.dtype)).itemsize
                )
                regions.append([number, number, offset, offset + size])
                mine.append(len(regions) - 1)
            behind[binding.var] = mine
        elif name == "relax.call_tir_inplace":
            for region in found:
                regions[region][1] = number
            behind[binding.var] = []
        elif isinstance(value, relax.TupleGetItem):
            behind[binding.var] = behind.get(value.tuple_value, [])[value.index : value.index + 1]
        else:  # a view
            behind[binding.var] = found
            if name == "pock.join":
                joined.append(found)
        if name.startswith("relax.call_tir"):
            outputs = len(types) if name == "relax.call_tir" else 0
            scratch = func.attrs["scratch"].get(value.args[0].name_hint)
            assert len(offsets[number]) == outputs + (scratch is not None)
            if scratch is not None:
                regions.append([number, number, offsets[number][-1], offsets[number][-1] + int(scratch)])
    for parts in joined:
        starts, ends = [regions[part][2] for part in parts], [regions[part][3] for part in parts]
        assert min(starts) < 0 or starts[1:] == ends[:-1], "parts do not lie one behind another"
    return [tuple(region) for region in regions if region[2] >= 0]


SCHEMES = {
    "full": {},
    "bias": dict.fromkeys(("blocks.0.conv2.bias", "blocks.1.bn.bias", "head.bias")),
    "last": {"head.bias": None},
    "sparse": {"blocks.0.conv2.weight": (1, [0, 3]), "blocks.1.conv1.weight": (1, [1, 2, 5]), "head.weight": None},
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"accumulate": 2}], ids=str)
def test_nothing_overlaps(scheme: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_forward, "START", 0)  # small as the network is, it is run in slices
    monkeypatch.setattr(slice_forward, "DEARER", 1)
    phases = trained_phases(SCHEMES[scheme] or dict.fromkeys(model().trainable), **options)
    planned = phases.after["planned"]
    assert ("pock.join" in operators(planned, "train_step")) == (scheme == "last")
    for name, func in (
        (var.name_hint, func) for var, func in planned.functions.items() if isinstance(func, relax.Function)
    ):
        regions = memory_map(func)
        size = int(func.attrs["arena_bytes"])
        assert all(end <= size for *_, end in regions), name
        for index, (first, last, start, end) in enumerate(regions):
            for other_first, other_last, other_start, other_end in regions[:index]:
                together = first <= other_last and other_first <= last
                assert not together or end <= other_start or other_end <= start, name
        live = [
            sum(end - start for first, last, start, end in regions if first <= step <= last)
            for step in range(len(func.attrs["arena_offsets"]))
        ]
        assert max(live, default=0) <= size


live_ranges = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 30), st.integers(0, 10)).map(
        lambda t: LiveRange("t", 64 * t[0], t[1], t[1] + t[2])
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(live_ranges)
def test_any_set_of_live_ranges_is_placed_without_overlap(wanted: list[LiveRange]) -> None:
    plan = place(wanted)
    byte_owner: dict[tuple[int, int], int] = {}
    for index, (live, offset) in enumerate(zip(plan.ranges, plan.offsets, strict=True)):
        assert offset % 64 == 0
        assert offset + live.size <= plan.size
        for step in range(live.first, live.last + 1):
            for line in range(offset // 64, (offset + live.size) // 64):
                assert byte_owner.setdefault((step, line), index) == index
    steps = range(60)
    most = max((sum(life.size for life in wanted if life.first <= step <= life.last) for step in steps), default=0)
    assert lower_bound(wanted) == most <= plan.size


def test_the_arena_starts_as_aligned_as_its_offsets_are() -> None:
    assert memory.ALIGNMENT % ALIGNMENT == 0
    assert memory.aligned((100,), "uint8").ctypes.data % ALIGNMENT == 0
