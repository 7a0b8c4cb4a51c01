"""The order of updates."""

from __future__ import annotations

from tvm.relax import op as R

from relay_passes import AppendUpdate, Backward, OrderUpdates
from relay_passes.ir import bindings_of, op_name, used_vars
from tests.relay_passes.modules import function, operators, regression, trained_phases


def test_an_update_runs_as_soon_as_it_may() -> None:
    phases = trained_phases({f"blocks.{b}.conv2.weight": None for b in (0, 1)})
    step = phases.after["ordered"]["train_step"]
    bindings = bindings_of(step)
    position = {binding.var: index for index, binding in enumerate(bindings)}
    for index, binding in enumerate(bindings):
        if op_name(binding.value) != "relax.call_tir_inplace":
            continue
        written = {binding.value.args[1].fields[int(i)] for i in binding.value.attrs.inplace_indices}
        readers = [
            i for i, other in enumerate(bindings) if other is not binding and written & set(used_vars(other.value))
        ]
        assert all(reader < index for reader in readers), "a value is read after it was overwritten"
        ready = max([position.get(var, 0) for var in used_vars(binding.value)] + readers)
        assert all(op_name(bindings[i].value) == "relax.call_tir_inplace" for i in range(ready + 1, index))


def test_an_update_waits_for_what_reads_a_view() -> None:
    def body(emit, x, w):
        return emit(R.sum(emit(emit(R.reshape(w, (6,))) * x)))

    backward = Backward({"w": None})(function({"x": (6,), "w": (2, 3)}, body))
    ordered = operators(OrderUpdates()(AppendUpdate({"kind": "sgd"}, {"w": None})(backward)))
    assert ordered.index("relax.multiply") < ordered.index("relax.call_tir_inplace")


def test_ordering_keeps_the_order_of_writes() -> None:
    trained = {"w": None, "b": None}
    mod = OrderUpdates()(AppendUpdate({"kind": "sgd"}, trained, clip_norm=1.0)(Backward(trained)(regression())))
    assert operators(mod).count("relax.call_tir_inplace") == 2
