"""Inputs that the arena holds: the same place in all functions, for as long as they are read."""

from __future__ import annotations

import pytest
import tvm
from tvm.relax import op as R

from relay_passes import HoldInputs, ListCalls, PlanArena
from relay_passes.analysis.live_ranges import INPUT
from relay_passes.canonical.split_batch import CUT
from relay_passes.ir import update_function
from relay_passes.memory.call_list import Region, call_list_of
from tests.relay_passes.modules import function, kernels

SIZE = 64 * 4


def regions(mod: tvm.IRModule, **options: object) -> tuple[list[Region], int]:
    """The inputs' regions, and the size of the arena that holds them."""
    held = HoldInputs(["main"], ["x", "unknown", "y"], **options)(mod)
    workspace = call_list_of(ListCalls()(PlanArena()(held))["main"]).workspace
    return [region for region in workspace.regions if region.name.startswith(INPUT)], workspace.arena_bytes


@pytest.fixture(scope="module")
def chain() -> tvm.IRModule:
    """Kernels one after the other, the last of which reads another input."""

    def body(emit, x, y):
        return emit(R.negative(emit(R.add(emit(R.tanh(emit(R.exp(x)))), y))))

    mod = kernels(function({"x": (64,), "y": (64,)}, body))
    return update_function(mod, "main", mod["main"].with_attr(CUT, ["x"]))


def test_temporaries_take_the_place_of_an_input_after_its_last_use(chain) -> None:
    found, size = regions(chain)
    assert [region[:3] for region in found] == [("input.x", 0, SIZE), ("input.y", SIZE, SIZE)]
    assert [(region.first, region.last) for region in found] == [(0, 0), (0, 2)]
    assert size == 3 * SIZE, "of the two temporaries that are in use at once, one lies where x was"


def test_of_micro_batches_all_but_the_last_keep_the_inputs(chain) -> None:
    for last, ends in (("other", (3, 3)), ("main", (0, 2))):
        found, _ = regions(chain, parts=3, last=last)
        assert [region[:3] for region in found] == [("input.x", 0, 3 * SIZE), ("input.y", 3 * SIZE, SIZE)]
        assert tuple(region.last for region in found) == ends
