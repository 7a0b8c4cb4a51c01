"""The backward graph holds what the scheme asks for and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax
from tvm.relax import op as R

from relay_passes import Backward
from relay_passes.errors import MissingGradient, PassError
from relay_passes.ir import bindings_of, is_kept, op_name, shape_of, used_vars
from relay_passes.ir.places import value_name
from relay_passes.training.backward import obstacles
from tests.relay_passes.modules import function, operators, trained_phases

CONV = {"padding": 1, "data_layout": "NHWC", "kernel_layout": "HWIO"}


@pytest.fixture(autouse=True)
def unknown(without_gradients) -> None:
    without_gradients("relax.cumprod")


def chain(unknown: bool = False):
    """Three convolutions with biases; the first behind an operator without a rule, if asked for."""

    def body(emit, x, w0, b0, w1, b1, w2, b2):
        for number, (weight, bias) in enumerate(((w0, b0), (w1, b1), (w2, b2))):
            x = emit(emit(R.nn.conv2d(x, weight, **CONV)) + bias)
            x = emit(R.cumprod(x, 0)) if unknown and number == 0 else emit(R.nn.relu(x))
        return emit(R.mean(x))

    shapes = {"x": (2, 5, 5, 6)} | {
        f"{kind}{n}": shape for n in range(3) for kind, shape in (("w", (3, 3, 6, 6)), ("b", (6,)))
    }
    return function(shapes, body)


def kept(mod, name: str = "main") -> dict[str, tuple[int, ...]]:
    """The activations that the forward graph keeps for the backward graph."""
    return {
        b.var.name: shape_of(b.var)
        for b in bindings_of(mod[name])
        if is_kept(b.var) and isinstance(b.value, relax.Call)
    }


def test_a_frozen_prefix_has_no_backward_node() -> None:
    mod = chain()
    forward = operators(mod)
    backward = operators(Backward({"b2": None})(mod))[len(forward) :]
    assert "pock.conv2d_data_gradient" not in backward
    assert "pock.conv2d_weight_gradient" not in backward
    assert operators(Backward({"b2": None})(mod))[: len(forward)] == forward


@pytest.mark.parametrize(
    ("trained", "data_gradients", "weight_gradients"),
    [(["b2"], 0, 0), (["w2"], 0, 1), (["b1"], 1, 0), (["w1", "b2"], 1, 1), (["w0"], 2, 1), (["w0", "w1", "w2"], 2, 3)],
)
def test_only_what_is_trained_is_computed(trained: list[str], data_gradients: int, weight_gradients: int) -> None:
    mod = Backward(dict.fromkeys(trained))(chain())
    assert operators(mod).count("pock.conv2d_data_gradient") == data_gradients
    assert operators(mod).count("pock.conv2d_weight_gradient") == weight_gradients
    assert list(mod["main"].attrs["gradients"]) == trained


def test_a_frozen_prefix_needs_no_rule_and_keeps_nothing_alive() -> None:
    mod = Backward({"w2": None})(chain(unknown=True))
    positions = {binding.var: index for index, binding in enumerate(bindings_of(mod["main"]))}
    unknown = next(b.var for b in bindings_of(mod["main"]) if op_name(b.value) == "relax.cumprod")
    assert all(positions[var] > positions[unknown] for var in positions if var.name in kept(mod))


def test_a_missing_rule_on_a_trained_path_is_named() -> None:
    with pytest.raises(MissingGradient) as error:
        Backward({"b0": None})(chain(unknown=True))
    assert "relax.cumprod" in str(error.value)
    assert "between the trained parameter 'b0' and the loss" in str(error.value)


def test_all_obstacles_are_listed_at_once() -> None:
    """Each operator without a rule on a trained path, and each parameter that cannot be trained in part; nothing
    before the first trained parameter."""

    def body(emit, x, w0, w1, w2, b):
        for weight in (w0, w1, w2):
            x = emit(R.cumprod(emit(x * weight), 0))
        return emit(R.mean(emit(x + b)))

    mod = function({"x": (2, 3), "w0": (3,), "w1": (3,), "w2": (3,), "b": (3,)}, body)
    found = obstacles(mod["main"], {"w1": None, "b": (0, [1])})
    assert [(each.operator, each.parameter) for each in found] == [("add", "b"), ("cumprod", "w1"), ("cumprod", "w1")]
    assert "'b' cannot be trained in part" in found[0].reason
    assert obstacles(mod["main"], {"b": None}) == []
    with pytest.raises(MissingGradient, match="2 more like it: 'pock check' lists all"):
        Backward({"w1": None, "b": (0, [1])})(mod)


def test_an_operator_is_named_as_pytorch_names_it_and_its_module() -> None:
    x, w = (relax.Var(name, relax.TensorType((3,), "float32")) for name in ("x", "w"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, w]):
        with builder.dataflow():
            y = builder.emit(R.cumprod(builder.emit(x * w), 0), value_name("blocks.3.act", "snake"))
            loss = builder.emit_output(builder.emit(R.mean(y)))
        builder.emit_func_output(loss)
    (found,) = obstacles(builder.get()["main"], {"w": None})
    assert (found.layer, found.operator, found.parameter) == ("blocks.3.act", "snake", "w")
    assert found.reason.startswith("operator 'snake' (relax.cumprod) in layer 'blocks.3.act' stands between")


def test_a_sparse_scheme_keeps_just_its_channels() -> None:
    phases = trained_phases({"blocks.1.conv2.weight": (1, [0, 2, 5])})
    step = phases.after["saved"]["train_step"]
    names = [binding.var for binding in bindings_of(step) if is_kept(binding.var)]
    made = {binding.var: binding.value for binding in bindings_of(step)}
    gathers = [var for var in names if op_name(made[var]) == "pock.gather_channels"]
    assert [shape_of(var)[-1] for var in gathers] == [3]
    source = made[gathers[0]].args[0]
    assert source not in names, "the whole activation is kept beside its channels"
    gradient = next(binding for binding in bindings_of(step) if op_name(binding.value) == "pock.conv2d_weight_gradient")
    assert shape_of(gradient.var) == (3, 3, 3, 8)


def test_bias_only_keeps_masks_and_no_activation() -> None:
    phases = trained_phases(dict.fromkeys(("blocks.0.conv2.bias", "blocks.1.conv2.bias", "head.bias")))
    step = phases.after["saved"]["train_step"]
    of_weights = {param for param in step.params if param.name not in ("x", "target")}
    for binding in bindings_of(step):
        if set(used_vars(binding.value)) <= of_weights:
            of_weights.add(binding.var)  # a folded weight, which its data gradient reads again
        elif is_kept(binding.var) and isinstance(binding.value, relax.Call) and len(shape_of(binding.var)) == 4:
            assert op_name(binding.value) == "pock.pack_bits", binding.var.name


def test_an_unused_parameter_has_no_gradient() -> None:
    mod = function({"x": (2, 3), "w": (3,), "unused": (3,)}, lambda emit, x, w, _unused: emit(R.sum(emit(x * w))))
    assert list(Backward({"w": None, "unused": None})(mod)["main"].attrs["gradients"]) == ["w"]


def test_values_used_several_times_get_the_sum() -> None:
    def body(emit, x, w):
        y = emit(x * w)
        return emit(R.sum(emit(emit(y * y) + emit(R.exp(w)))))

    mod = Backward({"w": None})(function({"x": (3,), "w": (3,)}, body))
    from tests.relay_passes.modules import run

    x, w = np.array([1.0, 2.0, 3.0], "float32"), np.array([0.5, -1.0, 2.0], "float32")
    np.testing.assert_allclose(run(mod, x, w)[1], 2 * x * x * w + np.exp(w), rtol=1e-6)


@pytest.mark.parametrize(
    ("trained", "complaint"),
    [
        ({"nothing": None}, "no parameter is called 'nothing'"),
        ({"w0": (3, [0])}, "along its input channels"),
        ({"b0": (0, [1])}, "'b0' cannot be trained in part"),
    ],
)
def test_wrong_requests_are_refused(trained: dict, complaint: str) -> None:
    with pytest.raises(PassError, match=complaint):
        Backward(trained)(chain())


def test_the_loss_must_be_a_number() -> None:
    with pytest.raises(PassError, match="must be a single floating-point number"):
        Backward({"w": None})(function({"x": (2, 3), "w": (3,)}, lambda emit, x, w: emit(x * w)))


def test_nchw_convolutions_are_sent_to_channels_last() -> None:
    mod = function({"x": (1, 2, 4, 4), "w": (3, 2, 1, 1)}, lambda emit, x, w: emit(R.mean(emit(R.nn.conv2d(x, w)))))
    with pytest.raises(PassError, match="ChannelsLast first"):
        Backward({"w": None})(mod)
