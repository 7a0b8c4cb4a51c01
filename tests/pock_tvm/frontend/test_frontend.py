"""Import: dynamic dimensions, names, constants, ONNX, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.errors import ModelError
from pock_tvm.frontend import load_model
from relay_passes.ir import bindings_of, op_name
from tests.pock_tvm.networks import Small, small


def test_parameters_have_pytorchs_names_and_the_order_of_their_use() -> None:
    model = load_model(small(), batch=3)
    assert model.inputs[0].shape == (3, 3, 8, 8)
    assert list(model.trainable)[:3] == ["stem.weight", "stem.bias", "blocks.0.conv1.weight"]
    assert set(model.trainable) == {name for name, _ in Small().named_parameters()}


def test_every_parameter_and_buffer_has_a_record_with_its_value() -> None:
    exported = small(4)
    model = load_model(exported)
    assert list(model.parameters) == list(exported.state_dict)
    for name, tensor in exported.state_dict.items():
        record = model.parameters[name]
        assert (record.name, record.shape, record.dtype) == (name, tuple(tensor.shape), str(tensor.dtype)[6:])
        assert (record.origin, record.trained, record.layout) == ("model", "frozen", None)
        np.testing.assert_array_equal(record.initial, tensor.detach().numpy())


def test_a_tied_weight_has_one_record() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(ids))

    model = load_model(torch.export.export(Tied().eval(), (torch.zeros(2, 3, dtype=torch.long),)))
    assert list(model.parameters) == ["embed.weight"] and model.aliases == {"head.weight": "embed.weight"}


def test_a_dynamic_batch_is_bound_at_compile_time(tmp_path) -> None:
    torch.export.save(small(), tmp_path / "net.pt2")
    x = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype("float32")
    predictions = [pock.Trainer(pock.compile(tmp_path / "net.pt2", batch=batch)).predict(x) for batch in (1, 6)]
    np.testing.assert_allclose(*predictions, atol=1e-5)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embed(ids) + torch.arange(ids.shape[1]).unsqueeze(-1) / 10
        return self.head(x.mean(1))


def test_further_dynamic_dimensions_are_bound_by_shape() -> None:
    dims = {0: torch.export.Dim("batch", min=1, max=32), 1: torch.export.Dim("tokens", min=2, max=64)}
    exported = torch.export.export(Tokens().eval(), (torch.zeros(2, 5, dtype=torch.long),), dynamic_shapes=(dims,))
    assert load_model(exported, shapes={"ids": (3, 7)}).inputs[0].shape == (3, 7)
    assert load_model(exported, batch=3, shapes={"ids": (3, 9)}).inputs[0].shape == (3, 9)
    with pytest.raises(ModelError, match=r"dimension 1 of input 'ids' is dynamic .* shapes=\{'ids'"):
        load_model(exported, batch=3)
    with pytest.raises(ModelError, match="'tokens', which is no input"):
        load_model(exported, shapes={"tokens": (3, 7)})
    with pytest.raises(ModelError, match="bound to both"):
        load_model(exported, batch=2, shapes={"ids": (3, 7)})


def test_indices_are_checked_before_a_step() -> None:
    exported = torch.export.export(Tokens().eval(), (torch.zeros(2, 5, dtype=torch.long),))
    trainer = pock.Trainer(pock.compile(exported))
    with pytest.raises(pock.PockError, match="holds 20, and its table has 20 rows"):
        trainer.step(np.full((2, 5), 20), np.zeros(2, "int64"), lr=0.1)


def test_what_depends_on_no_input_is_computed_at_import() -> None:
    class Positions(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            angles = torch.outer(torch.arange(4.0), 10000 ** (-torch.arange(3.0) / 3))
            return x * angles.cos() + torch.ones(4, 3).triu().cumsum(0)

    model = load_model(torch.export.export(Positions(), (torch.randn(2, 4, 3),)))
    names = [op_name(b.value) for b in bindings_of(model.module["main"]) if op_name(b.value)]
    assert names == ["relax.multiply", "relax.add"]


def test_onnx_trains_as_the_network_that_it_came_from(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Flatten(), nn.Linear(8 * 64, 5)).eval()
    example = torch.randn(2, 3, 8, 8)
    torch.onnx.export(
        model, (example,), tmp_path / "net.onnx", input_names=["x"], dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
    )  # fmt: skip
    options = {
        "batch": 4,
        "optimizer": pock.SGD(momentum=0.9),
        "scheme": pock.Scheme({"*.bias": "full", "3.weight": 0.5}),
    }
    onnx = pock.Trainer(pock.compile(tmp_path / "net.onnx", **options))
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = pock.Trainer(pock.compile(torch.export.export(model, (example,), dynamic_shapes=dynamic), **options))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 3, 8, 8)).astype("float32"), rng.integers(0, 5, 4)
    for _ in range(3):
        assert onnx.step(x, y, lr=0.1) == pytest.approx(exported.step(x, y, lr=0.1), rel=1e-5)
    weights = exported.weights()
    for name, array in onnx.weights().items():
        np.testing.assert_allclose(array, weights[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_converted(dtype: torch.dtype) -> None:
    """Tied weights stay tied, and the program's numbers are those of the model."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 7, bias=False))
    net[2].weight = net[0].weight
    exported = torch.export.export(net.to(dtype).eval(), (torch.zeros(2, 3, dtype=torch.long),))
    with pytest.warns(pock.PockWarning, match=f"{str(dtype)[6:]} numbers were converted"):
        program = pock.compile(exported, loss="causal_lm", check=True)
    assert program.manifest["aliases"] == {"2.weight": "0.weight"}
    assert {weight.dtype for weight in (*net.parameters(), *exported.parameters())} == {dtype}, "it is the user's"
    wanted = net.float()[0].weight.detach()
    np.testing.assert_array_equal(program.weights["0.weight"], wanted)


def test_a_result_of_a_region_without_gradients_may_be_an_output() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.no_grad():
                features = self.backbone(x)
            return self.head(features), features

    exported = torch.export.export(Features().eval(), (torch.randn(2, 4),))
    program = pock.compile(exported, loss="mse")
    assert [output["shape"] for output in program.manifest["outputs"]] == [(2, 2), (2, 3)]
    assert "backbone.weight" in program.manifest["check"]["unchecked"]


def test_outputs_may_be_truths_whole_numbers_and_what_comes_in() -> None:
    class Judged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[object, ...]:
            logits = self.linear(x)
            found = logits.argmax(1)
            return nn.functional.cross_entropy(logits, y), found == y, found, None, x, self.linear.weight

    program = pock.compile(
        torch.export.export(Judged().eval(), (torch.randn(2, 4), torch.tensor([0, 2]))), loss="output"
    )
    assert [output["dtype"] for output in program.manifest["outputs"]][:3] == ["float32", "bool", "int64"]


def test_weights_without_values_are_refused_by_name() -> None:
    with torch.device("meta"):
        exported = torch.export.export(nn.Linear(4, 3), (torch.zeros(2, 4),))
    with pytest.raises(ModelError, match="'weight' has a shape and no values"):
        load_model(exported)


def test_a_fixed_batch_cannot_be_changed() -> None:
    with pytest.raises(ModelError, match="fixed batch of 4 .* not 8"):
        load_model(small(4), batch=8)


def test_a_size_that_the_model_was_not_exported_for_is_refused() -> None:
    batch = torch.export.Dim("batch", min=4, max=16)
    exported = torch.export.export(nn.Linear(3, 2).eval(), (torch.zeros(8, 3),), dynamic_shapes=({0: batch},))
    for wrong, limit in ((32, "at most 16, not 32"), (2, "at least 4, not 2")):
        with pytest.raises(ModelError, match=f"dimension 0 of input 'input' was exported for {limit}"):
            load_model(exported, batch=wrong)
    assert load_model(exported, batch=16).inputs[0].shape == (16, 3)


def test_files_that_are_no_models_are_refused(tmp_path) -> None:
    (tmp_path / "net.pt2").write_text("nothing")
    (tmp_path / "net.onnx").write_text("nothing")
    (tmp_path / "net.txt").write_text("nothing")
    for name, complaint in (
        ("net.pt2", "cannot be read"),
        ("net.onnx", "cannot be read"),
        ("net.txt", "neither"),
        ("no.pt2", "no model file"),
        (".", "is a folder"),
    ):
        with pytest.raises(ModelError, match=complaint):
            load_model(tmp_path / name)
    with pytest.raises(ModelError, match="not 3"):
        load_model(3)


def test_values_without_elements_cost_nothing_and_are_no_output() -> None:
    """As a rotary embedding of all channels leaves of the rest."""

    class Rotary(nn.Module):
        def __init__(self, is_joined: bool) -> None:
            super().__init__()
            self.linear, self.is_joined = nn.Linear(4, 4), is_joined

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            return torch.cat([y[:, :4] * 2, y[:, 4:]], 1) if self.is_joined else y[:, 4:]

    x = torch.randn(2, 4)
    assert pock.compile(torch.export.export(Rotary(True).eval(), (x,)), loss="mse").manifest["check"]
    with pytest.raises(ModelError, match=r"output 0 has the empty shape \(2, 0\)"):
        load_model(torch.export.export(Rotary(False).eval(), (x,)))


def test_a_parameter_changed_in_place_without_gradients_is_refused() -> None:
    class Rescaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.weight.div_(2.0)
            return super().forward(x)

    with pytest.raises(ModelError, match=r"'aten.div_.Tensor' .*changes 'weight' in place under torch.no_grad"):
        load_model(torch.export.export(Rescaled(4, 3).eval(), (torch.randn(2, 4),)))


def test_an_operator_without_a_rule_is_named_with_the_parameter_behind_it(without_gradients) -> None:
    without_gradients("relax.cumprod")

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.cumprod(self.first(x), 1))

    exported = torch.export.export(Odd().eval(), (torch.randn(2, 4),))
    pock.compile(exported, scheme=pock.Scheme({"last.*": "full"}))  # a frozen prefix needs no rule
    with pytest.raises(pock.PockError) as error:
        pock.compile(exported)
    for part in ("operator 'cumprod' in the outermost module", "'first.", "Freeze"):
        assert part in str(error.value)
