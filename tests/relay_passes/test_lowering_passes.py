"""The passes behind differentiation: updates, lifting, order, executors."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax
from tvm.relax import op as R

from relay_passes import AppendUpdate, Backward, LiftFrozen, OrderUpdates, PackMasks, SaveSmall
from relay_passes.errors import PassError
from relay_passes.ir import bindings_of, bytes_of, is_kept, op_name, used_vars
from tests.relay_passes.modules import function, operators, run, trained_phases


def regression():
    """``mean((x W + b - 1)^2)`` with W and b trained."""

    def body(emit, x, w, b):
        error = emit(emit(emit(R.matmul(x, w)) + b) - relax.const(1.0, "float32"))
        return emit(R.mean(emit(error * error)))

    return function({"x": (4, 3), "w": (3, 2), "b": (2,)}, body)


def test_updates_are_written_in_place() -> None:
    trained = {"w": None, "b": None}
    mod = AppendUpdate({"kind": "sgd", "momentum": 0.5}, trained)(Backward(trained)(regression()))
    assert [param.name for param in mod["main"].params] == [
        "x",
        "w",
        "b",
        "rates",
        "momentum_buffer.w",
        "momentum_buffer.b",
    ]
    import tvm

    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype("float32") for shape in ((4, 3), (3, 2), (2,))]
    tensors = [
        tvm.runtime.tensor(a)
        for a in [*arrays, np.array([0.1], "float32"), np.zeros((3, 2), "float32"), np.zeros(2, "float32")]
    ]
    x, w, b = (array.astype("float64") for array in arrays)
    momentum, b_momentum = np.zeros_like(w), np.zeros_like(b)
    for _ in range(3):
        machine["main"](*tensors)
        error = x @ w + b - 1
        momentum = 0.5 * momentum + x.T @ error * (2 / error.size)
        b_momentum = 0.5 * b_momentum + error.sum(0) * (2 / error.size)
        w, b = w - 0.1 * momentum, b - 0.1 * b_momentum
    np.testing.assert_allclose(tensors[1].numpy(), w, rtol=1e-5)
    np.testing.assert_allclose(tensors[2].numpy(), b, rtol=1e-5)


@pytest.mark.parametrize("optimizer", [{"kind": "lion"}, {"kind": "sgd", "betas": 1}])
def test_unknown_optimizers_are_refused(optimizer: dict) -> None:
    with pytest.raises(PassError, match="no opti"):
        AppendUpdate(optimizer, {"w": None})(Backward({"w": None})(regression()))


def test_an_update_needs_gradients() -> None:
    with pytest.raises(PassError, match="Backward first"):
        AppendUpdate({"kind": "sgd"}, {"w": None})(regression())


def test_frozen_work_is_done_once() -> None:
    def body(emit, x, w, b):
        return emit(emit(R.matmul(x, emit(R.permute_dims(emit(R.exp(w)), [1, 0])))) + b)

    mod = function({"x": (4, 3), "w": (2, 3), "b": (2,)}, body)
    lifted = LiftFrozen(["w", "b"], ["main"])(mod)
    assert operators(lifted, "prepare") == ["relax.exp", "relax.permute_dims"]
    assert operators(lifted) == ["relax.matmul", "relax.add"]
    assert [param.name for param in lifted["main"].params] == ["x", "prepared.0", "b"]
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype("float32") for shape in ((4, 3), (2, 3), (2,)))
    prepared = run(lifted, w, b, name="prepare")
    np.testing.assert_allclose(run(lifted, x, prepared[0], b), run(mod, x, w, b), rtol=1e-6)


def test_two_functions_share_what_they_prepare() -> None:
    phases = trained_phases({"blocks.1.conv2.weight": None, "head.bias": None})
    kernels = phases.after["kernels"]
    read = {
        name: {p.name for p in kernels[name].params if p.name.startswith("prepared.")}
        for name in ("train_step", "predict")
    }
    assert read["predict"]
    assert read["predict"] <= read["train_step"] | read["predict"]
    assert read["predict"] & read["train_step"]


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


def test_what_is_kept_is_small() -> None:
    def body(emit, x, w, v):
        hidden = emit(R.nn.relu(emit(R.matmul(x, w))))
        y = emit(R.matmul(hidden, v))
        return emit(R.log(emit(R.sum(emit(y * y)))))

    mod = Backward({"w": None})(function({"x": (4, 3), "w": (3, 3), "v": (3, 3)}, body))
    small = SaveSmall()(mod)
    kept = [
        binding
        for binding in bindings_of(small["main"])
        if is_kept(binding.var) and isinstance(binding.value, relax.Call)
    ]
    assert "relax.less_equal" in [op_name(binding.value) for binding in kept]
    assert "relax.nn.relu" not in [op_name(binding.value) for binding in kept]
    for before, after in zip(run(mod), run(small), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("rows", "bytes_kept"), [(64, 8 * 33), (50, 7 * 33), (1, 5), (7, None)])
def test_masks_are_kept_as_bits(rows: int, bytes_kept: int | None) -> None:
    columns = 33 if rows > 1 else 33 * 17
    bytes_kept = bytes_kept if rows > 1 else -(-columns // 8)

    def body(emit, x, w, v):
        hidden = emit(R.matmul(x, w))
        positive = emit(hidden > relax.const(0.0, "float32"))
        y = emit(R.matmul(emit(R.where(positive, hidden, relax.const(0.0, "float32"))), v))
        return emit(R.log(emit(R.sum(emit(y * y)))))

    mod = SaveSmall()(Backward({"w": None})(function({"x": (rows, 3), "w": (3, columns), "v": (columns, 3)}, body)))
    packed = PackMasks()(mod)
    kept = {b.var: op_name(b.value) for b in bindings_of(packed["main"]) if is_kept(b.var)}
    masks = [var for var in kept if str(getattr(var.ty, "dtype", "")).endswith("bool")]
    bits = [bytes_of(var) for var, maker in kept.items() if maker == "pock.pack_bits"]
    assert (bits, len(masks)) == (([], 1) if bytes_kept is None else ([bytes_kept], 0))
    for before, after in zip(run(mod), run(packed), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_mask_made_of_another_is_packed_too() -> None:
    zero, one = (relax.const(value, "float32") for value in (0.0, 1.0))

    def body(emit, x, w):
        hidden = emit(R.matmul(x, w))
        positive = emit(hidden > zero)
        between = emit(R.logical_and(positive, emit(hidden < one)))
        y = emit(emit(R.where(positive, hidden, zero)) + emit(R.where(between, hidden, one)))
        return emit(R.log(emit(R.sum(emit(y * y)))))

    mod = SaveSmall()(Backward({"w": None})(function({"x": (64, 3), "w": (3, 33)}, body)))
    packed = PackMasks()(mod)
    assert operators(packed).count("pock.pack_bits") == 2
    for before, after in zip(run(mod), run(packed), strict=True):
        np.testing.assert_array_equal(before, after)
