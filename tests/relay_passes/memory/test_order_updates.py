"""The order of updates."""

from __future__ import annotations

from tvm.relax import op as R

from relay_passes import AppendUpdate, Backward, OrderUpdates
from relay_passes.ir import bindings_of, op_name, returned, used_vars
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


def _calls(guard: str, **options) -> list[str]:
    """The calls of a training step in order: ``loss``, ``write`` for in-place calls, ``kernel`` for others."""
    trained = {f"blocks.{b}.conv2.weight": None for b in (0, 1)}
    step = trained_phases(trained, guard=guard, batch_norm="batch", **options).after["ordered"]["train_step"]
    loss = returned(step)[0]
    names = {"relax.call_tir_inplace": "write", "relax.call_tir": "kernel"}
    return ["loss" if each.var.same_as(loss) else names[op_name(each.value)]
            for each in bindings_of(step) if op_name(each.value) in names]  # fmt: skip


def test_a_guarded_update_waits_for_the_loss() -> None:
    off, update = _calls("off"), _calls("update")
    assert sorted(off) == sorted(update) and off.count("loss") == 1
    assert "write" in off[: off.index("loss")], "statistics are written as soon as they are known"
    assert "write" not in update[: update.index("loss")]
    assert "kernel" in update[update.index("write") :]


def test_a_guarded_step_waits_for_the_last_gradient() -> None:
    step = _calls("step")
    assert set(step[step.index("write") :]) == {"write"}


def test_weights_beside_gradient_sums_wait_for_the_last() -> None:
    trained = {f"blocks.{b}.conv2.weight": None for b in (0, 1)}
    step = trained_phases(trained, guard="update", accumulate=2).after["ordered"]["train_step"]
    written = [
        binding.value.args[1].fields[0].name
        for binding in bindings_of(step)
        if op_name(binding.value).endswith("inplace")
    ]
    sums = [f"gradient_sum.{name}" for name in trained]
    assert set(written[:2]) == set(sums) and set(written[2:4]) == set(trained) and set(written[4:]) == set(sums)
