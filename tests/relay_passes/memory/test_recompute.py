"""Recomputation within a budget."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.relax import op as R

from relay_passes import (
    PlanArena,
    Recompute,
)
from relay_passes.analysis.live_ranges import live_ranges
from relay_passes.errors import PassError
from relay_passes.ir import bindings_of, op_name, used_vars
from relay_passes.memory.placement import lower_bound
from relay_passes.memory.recompute import recomputed
from tests.relay_passes.modules import function, kernels, model, random, run, trained_phases


def there_and_back(emit, x):
    """Keeps the results of a chain, and reads them in the opposite order."""
    chain = [x]
    for _ in range(6):
        chain.append(emit(R.tanh(chain[-1])))
    total = chain[-1]
    for value in reversed(chain[1:-1]):
        total = emit(R.multiply(emit(R.add(total, value)), value))
    return emit(R.sum(total))


def peak(mod: tvm.IRModule) -> int:
    return lower_bound(live_ranges(mod["main"]))


def test_values_are_computed_again_within_a_budget() -> None:
    mod = kernels(function({"x": (64, 64)}, there_and_back))
    budget = int(0.7 * peak(mod))
    small = Recompute(budget, {})(mod)
    assert peak(small) <= budget
    assert len(bindings_of(small["main"])) > len(bindings_of(mod["main"]))
    (x,) = random((64, 64))
    np.testing.assert_array_equal(run(small, x), run(mod, x))
    assert PlanArena()(small)["main"].attrs["arena_lower_bound"] <= budget


def test_a_budget_out_of_reach_is_refused() -> None:
    with pytest.raises(PassError, match="brings 'main' down to"):
        Recompute(1000, {})(kernels(function({"x": (64, 64)}, there_and_back)))


def test_nothing_is_computed_again_from_what_was_overwritten() -> None:
    phases = trained_phases(dict.fromkeys(model().trainable))
    step = phases.after["ordered"]["train_step"]
    func = recomputed(step, 0, {}).function
    bindings = bindings_of(func)
    assert len(bindings) > len(bindings_of(step))
    for index, binding in enumerate(bindings):
        if op_name(binding.value) == "relax.call_tir_inplace":
            written = {binding.value.args[1].fields[int(i)] for i in binding.value.attrs.inplace_indices}
            later = [other for other in bindings[index + 1 :] if written & set(used_vars(other.value))]
            assert all(op_name(other.value) == "relax.call_tir_inplace" for other in later)
