"""The checks behind each phase: none speaks of a module that is right, each notices its rule broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import tvm
from tvm import relax
from tvm.relax import op as R

from pock_tvm.compiler.phases import Phases
from relay_passes import CopyFunction, DropFunctions
from relay_passes.analysis.live_ranges import SCRATCH
from relay_passes.analysis.verify import (
    VerifyError,
    batch_norms_are_folded,
    everything_is_needed,
    only_executors,
    only_kernels,
    only_trained_gradients,
    only_trained_written,
    parameters_are_told_apart,
    returns_loss,
    updates_follow_reads,
    verify,
)
from relay_passes.ir import CALLS, assemble, bindings_of, op_name, rewrite, update_function, used_vars
from relay_passes.memory.call_list import KernelCall, attached, call_list_of
from relay_passes.memory.verify import operands_are_inside, ranges_are_apart
from tests.relay_passes.modules import function, trained_phases

STEP = "train_step"
TRAINED = {"blocks.1.conv2.weight": (1, [0, 2]), "head.weight": None, "head.bias": None}


@pytest.fixture(scope="module")
def phases() -> Phases:
    return trained_phases(TRAINED, optimizer={"kind": "sgd", "momentum": 0.9})


def edited(mod: tvm.IRModule, edit: Callable[[list], None]) -> tvm.IRModule:
    """The module with the bindings of its training step edited."""
    func = mod[STEP]
    bindings = bindings_of(func)
    edit(bindings)
    return update_function(mod, STEP, assemble(func.params, bindings, func.body.body, func.attrs))


def stored(phases: Phases) -> dict:
    """What is trained, along axes as the module stores parameters."""
    return TRAINED | {"blocks.1.conv2.weight": (2, [0, 2])}


def test_a_module_that_is_not_well_formed_is_noticed() -> None:
    x, y = (relax.Var(name, relax.TensorType((2,), "float32")) for name in "xy")
    with pytest.raises(VerifyError, match="after phase 2: the module is not well formed"):
        verify(tvm.IRModule({"main": relax.Function([x], relax.SeqExpr([], y), y.ty)}), "phase 2", [])


def test_a_broken_rule_stops_a_compile_where_it_is_asked_for(monkeypatch) -> None:
    mod = function({"x": (2,)}, lambda emit, x: emit(R.exp(x)))
    with pytest.raises(VerifyError, match="after phase 4, backward: it is broken"):
        Phases(mod).enter(4, "backward", mod, lambda _mod: ["it is broken"])
    monkeypatch.setenv("POCK_VERIFY", "0")
    Phases(mod).enter(4, "backward", mod, lambda _mod: ["it is broken"])


def test_two_parameters_of_a_name_are_noticed() -> None:
    mod = function({"x": (2,), "w": (2,)}, lambda emit, x, w: emit(R.add(x, w)))
    assert not list(parameters_are_told_apart(mod))
    func = mod["main"]
    twin = relax.Var("x", func.params[1].ty)
    twins = rewrite(func, params=[func.params[0], twin], env={func.params[1]: twin})
    assert "two parameters 'x'" in next(parameters_are_told_apart(update_function(mod, "main", twins)))
    many = update_function(mod, "main", func.with_attr("num_input", 3))
    assert "of which 3 are inputs" in next(parameters_are_told_apart(many))


def test_a_batch_norm_that_is_left_is_noticed(phases) -> None:
    assert not list(batch_norms_are_folded(phases.after["folded"]))
    assert "is a batch norm" in next(batch_norms_are_folded(phases.after["copied"]))


def test_a_step_without_a_loss_is_noticed(phases) -> None:
    assert not list(returns_loss(STEP)(phases.after["loss"]))
    assert "is no loss" in next(returns_loss(STEP)(phases.after["simple"]))


@pytest.mark.parametrize("step", ["backward", "saved"])
def test_a_gradient_of_what_is_frozen_is_noticed(phases, step) -> None:
    mod, trained = phases.after[step], stored(phases)
    assert not list(only_trained_gradients(STEP, trained)(mod))
    fewer = {name: part for name, part in trained.items() if name != "head.bias"}
    assert list(only_trained_gradients(STEP, fewer)(mod)) == [
        f"'{STEP}' returns a gradient of 'head.bias', which is frozen"
    ]
    whole = trained | {"blocks.1.conv2.weight": None}
    assert "what is trained of it" in next(only_trained_gradients(STEP, whole)(mod))


def test_a_gradient_that_no_result_needs_is_noticed(phases) -> None:
    """Of a frozen prefix, for example."""
    mod = phases.after["backward"]
    assert not list(everything_is_needed(STEP)(mod))

    def unneeded(bindings: list) -> None:
        prefix = next(binding for binding in bindings if isinstance(binding.var.ty, relax.TensorType))
        gradient = relax.DataflowVar("gradient_of_prefix", prefix.var.ty)
        bindings.insert(-1, relax.VarBinding(gradient, relax.BlockBuilder().normalize(R.negative(prefix.var))))

    assert "needs 'gradient_of_prefix'" in next(everything_is_needed(STEP)(edited(mod, unneeded)))


def test_a_write_to_what_is_frozen_is_noticed(phases) -> None:
    mod = phases.after["update"]
    assert not list(only_trained_written([STEP], TRAINED)(mod))
    found = set(only_trained_written([STEP], [name for name in TRAINED if name != "head.bias"])(mod))
    assert {broken.split("'")[3] for broken in found} == {"head.bias", "momentum_buffer.head.bias"}


def test_an_operator_that_is_left_is_noticed(phases) -> None:
    for step in ("kernels", "fused"):
        assert not list(only_kernels(phases.after[step]))
    assert "is the operator" in next(only_kernels(phases.after["products"]))
    mod = phases.after["fused"]
    kernel = next(b.value.args[0].name_hint for b in bindings_of(mod[STEP]) if op_name(b.value) in CALLS)
    assert f"calls '{kernel}', which is no kernel" in next(only_kernels(DropFunctions([kernel])(mod)))


@pytest.mark.parametrize("through_a_view", [False, True])
def test_a_read_behind_an_update_is_noticed(phases, through_a_view) -> None:
    mod = phases.after["ordered"]
    assert not list(updates_follow_reads(mod))
    weight = next(param for param in mod[STEP].params if param.name == "head.weight")

    def read_late(bindings: list) -> None:
        reader = next(b for b in bindings if op_name(b.value) == "relax.call_tir" and weight in used_vars(b.value))
        value = reader.value
        if through_a_view:
            view = relax.DataflowVar("view", weight.ty)
            bindings.insert(
                0, relax.VarBinding(view, relax.BlockBuilder().normalize(R.reshape(weight, weight.ty.shape)))
            )
            args = [view if arg.same_as(weight) else arg for arg in value.args[1].fields]
            value = relax.Call(value.op, [value.args[0], relax.Tuple(args)], value.attrs, value.ty_args)
        bindings.insert(-1, relax.VarBinding(relax.DataflowVar("late", reader.var.ty), value))

    late = edited(mod, read_late)
    assert f"'late' of '{STEP}' reads 'head.weight' behind its update" in list(updates_follow_reads(late))


def test_temporaries_that_share_bytes_are_noticed(phases) -> None:
    mod = phases.after["planned"]
    assert not list(ranges_are_apart(mod))
    func = mod[STEP]
    flat = [[name, 0, size, first, last] for name, _, size, first, last in func.attrs["arena_map"]]
    broken = list(ranges_are_apart(update_function(mod, STEP, func.with_attr("arena_map", flat))))
    assert broken and all("share bytes" in each for each in broken)
    small = func.with_attr("arena_bytes", int(func.attrs["arena_bytes"]) - 64)
    assert "outside the arena" in next(ranges_are_apart(update_function(mod, STEP, small)))


def test_an_operand_outside_is_noticed(phases) -> None:
    mod = phases.after["calls"]
    for step in ("calls", "executors"):
        assert not list(operands_are_inside(phases.after[step]))
    calls = call_list_of(mod[STEP])

    def broken(**changes: object) -> list[str]:
        return list(operands_are_inside(update_function(mod, STEP, attached(mod[STEP], replace(calls, **changes)))))

    kernels = [number for number, call in enumerate(calls.calls) if isinstance(call, KernelCall)]
    for number in (kernels[0], kernels[-1]):  # of an input, and of a parameter that is updated
        call = calls.calls[number]
        assert isinstance(call, KernelCall)
        place = call.operands[0]._replace(offset=2**30)
        moved = replace(call, operands=(place, *call.operands[1:]))
        found = broken(calls=(*calls.calls[:number], moved, *calls.calls[number + 1 :]))
        assert len(found) == 1 and f"call {number} of" in found[0]
        fewer = replace(call, operands=call.operands[1:])
        assert "operands" in broken(calls=(*calls.calls[:number], fewer, *calls.calls[number + 1 :]))[0]
    # Scratch that is passed to no kernel, and to another kernel than it is reserved for.
    assert any(region.name == SCRATCH for region in calls.workspace.regions)
    number = next(region.first for region in calls.workspace.regions if region.name == SCRATCH)
    call = calls.calls[number]
    assert isinstance(call, KernelCall)
    *operands, scratch = call.operands
    for changed, said in ((operands, "operands"), ([*operands, scratch._replace(offset=0)], "of another call")):
        moved = replace(call, operands=tuple(changed))
        assert said in broken(calls=(*calls.calls[:number], moved, *calls.calls[number + 1 :]))[0]
    regions = [region._replace(last=region.last - 1) for region in calls.workspace.regions]
    assert broken(workspace=replace(calls.workspace, regions=tuple(regions)))


def test_what_is_no_executor_yet_is_noticed(phases) -> None:
    assert not list(only_executors(phases.after["executors"]))
    assert next(only_executors(phases.after["calls"])).endswith("is no executor yet")


def test_copies_have_variables_of_their_own() -> None:
    mod = CopyFunction(["a", "b"])(function({"x": (2,)}, lambda emit, x: emit(R.exp(x))))
    assert not set(mod["a"].params) & set(mod["b"].params)
    assert {str(mod[name].attrs["global_symbol"]) for name in "ab"} == {"a", "b"}
    assert [var.name_hint for var in DropFunctions(["main", "a"])(mod).functions] == ["b"]
