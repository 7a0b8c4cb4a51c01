"""Scratch is a temporary of one call: it is planned, counted, and passed to the kernel that needs it."""

from __future__ import annotations

import pytest
import tvm
from tvm.relax import op as R

from relay_passes import ListCalls, PlanArena, ReserveScratch
from relay_passes.analysis.live_ranges import SCRATCH, live_ranges
from relay_passes.ir import bindings_of
from relay_passes.memory.call_list import KernelCall, call_list_of
from relay_passes.memory.placement import lower_bound
from relay_passes.memory.recompute import recomputed
from tests.relay_passes.modules import function, kernels

SIZE = 64 * 4


@pytest.fixture(scope="module")
def chain() -> tvm.IRModule:
    """Three kernels, one after the other: exp, tanh, negative."""
    return kernels(function({"x": (64,)}, lambda emit, x: emit(R.negative(emit(R.tanh(emit(R.exp(x))))))))


def named(mod: tvm.IRModule, which: int) -> str:
    return bindings_of(mod["main"])[which].value.args[0].name_hint


def test_the_plan_holds_it_for_one_call(chain) -> None:
    mod = ListCalls()(PlanArena()(ReserveScratch(["main"], {named(chain, 1): 1000})(chain)))
    calls = call_list_of(mod["main"])
    assert calls.workspace.arena_bytes == calls.workspace.lower_bound == 2 * SIZE + 1024  # of whole cache lines
    (region,) = [region for region in calls.workspace.regions if region.name == SCRATCH]
    assert (region.first, region.last, region.size) == (1, 1, 1024)
    exp, tanh, negative = calls.calls
    assert isinstance(tanh, KernelCall) and tanh.operands[-1] == (calls.arena, region.offset)
    assert [len(call.operands) for call in (exp, tanh, negative)] == [2, 3, 2]


def test_without_any_nothing_changes(chain) -> None:
    plain, reserved = (ListCalls()(PlanArena()(mod)) for mod in (chain, ReserveScratch(["main"], {})(chain)))
    assert call_list_of(plain["main"]).record() == call_list_of(reserved["main"]).record()


def test_rematerialisation_counts_it(chain) -> None:
    func = ReserveScratch(["main"], {named(chain, 1): 10 * SIZE})(chain)["main"]
    assert recomputed(func, 10**9, {}).peak == lower_bound(live_ranges(func)) == 12 * SIZE
