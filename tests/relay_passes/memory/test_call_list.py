"""Call lists: what a planned function becomes, as a value that travels through a module and is printed."""

from __future__ import annotations

import pytest
import tvm
from tvm import relax
from tvm.relax import op as R

from relay_passes import ChooseKernels, ListCalls, LowerToExecutor, NameKernels, PlanArena
from relay_passes.errors import PassError
from relay_passes.memory.call_list import Copy, KernelCall, Place, call_list_of
from tests.relay_passes.modules import TARGET, function


def planned(body, params) -> tvm.IRModule:
    passes = [
        ChooseKernels(["main"], TARGET),
        relax.transform.RewriteDataflowReshape(),
        NameKernels(["main"]),
        PlanArena(),
    ]
    return tvm.transform.Sequential(passes)(function(params, body))


def twice_the_same(emit, x, w):
    y = emit(R.exp(emit(R.add(x, w))))
    return emit(relax.Tuple([y, y, w, relax.const([1.0, 2.0], "float32")]))


@pytest.fixture
def module() -> tvm.IRModule:
    return planned(twice_the_same, {"x": (2, 3), "w": (2, 3)})


def test_a_list_holds_kernels_and_the_copies_of_results(module) -> None:
    calls = call_list_of(ListCalls()(module)["main"])
    names = [tensor.name for tensor in calls.table]
    (constant,) = calls.constants
    assert names == ["x", "w", constant, "result.0", "result.1", "result.2", "result.3"]
    add, exp, *copies = calls.calls
    assert isinstance(add, KernelCall) and isinstance(exp, KernelCall)
    assert add.operands == (Place(0, 0), Place(1, 0), Place(calls.arena, 0))
    assert exp.operands == (Place(calls.arena, 0), Place(3, 0))
    assert copies == [
        Copy(Place(4, 0), Place(3, 0), 24),
        Copy(Place(5, 0), Place(1, 0), 24),
        Copy(Place(6, 0), Place(2, 0), 8),
    ]
    assert [tuple(region[1:]) for region in calls.workspace.regions] == [(0, 64, 0, 1)]
    assert calls.workspace.arena_bytes == calls.workspace.lower_bound == 64


def test_a_list_is_the_same_behind_its_module(module) -> None:
    listed = ListCalls()(module)
    lowered = LowerToExecutor()(listed)
    before, after = (call_list_of(mod["main"]) for mod in (listed, lowered))
    assert before.record() == after.record()
    assert isinstance(lowered["main"], tvm.tirx.PrimFunc)
    assert str(lowered["main"].body).count("memcpy") == 3
    assert before.record()["calls"][-1] == ["copy", [[6, 0], [2, 0]], 8]


def test_what_comes_before_is_named() -> None:
    mod = function({"x": (2,)}, lambda emit, x: emit(R.exp(x)))
    with pytest.raises(PassError, match="PlanArena first"):
        ListCalls()(mod)
    with pytest.raises(PassError, match="ListCalls first"):
        LowerToExecutor()(mod)
