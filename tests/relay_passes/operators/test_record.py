"""One record an operator: what is said twice is an error."""

from __future__ import annotations

import pytest
from tvm import relax

from relay_passes.errors import RegistrationError
from relay_passes.gradients import flat, gradient, rule_for, supported_operators
from relay_passes.kernels.choose_kernels import ChooseKernels  # noqa: F401 - the rules for kernels
from relay_passes.operators import record
from relay_passes.operators.record import Kind, all_records, describe, kind_of, record_of, rule
from relay_passes.operators.registry import register_operator


@pytest.fixture(autouse=True)
def untouched(monkeypatch) -> None:
    monkeypatch.setattr(record, "_RECORDS", dict(record._RECORDS))


def test_a_record_says_what_the_passes_know() -> None:
    tanh, product = record_of("relax.tanh"), record_of("pock.matmul")
    assert (tanh.kind, list(tanh.gradients), tanh.kernel is not None) == (Kind.ELEMENTWISE, [0], True)
    assert list(product.gradients) == [0, 1] and product.kernel is not None
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    assert kind_of(relax.op.sum(x, axis=1)) is Kind.REDUCTION
    assert kind_of(x) is record_of("relax.unknown").kind is Kind.OTHER
    assert [each.name for each in all_records()] == sorted({each.name for each in all_records()})


@pytest.mark.parametrize(
    "twice",
    [
        lambda: describe("relax.tanh", kind=Kind.RESHAPE),
        lambda: describe("pock.join", is_alias=True),
        lambda: rule("kernel", "relax.tanh")(lambda _target: None),
        lambda: gradient("relax.tanh")(lambda use: use.grad),
        lambda: gradient("pock.matmul", 1)(lambda use: use.grad),
        lambda: flat("relax.floor"),
        lambda: register_operator("pock.elu", ["x"], lambda call: call.args[0].ty, lambda x: x),
    ],
    ids=["kind", "alias", "kernel", "gradient", "second operand", "flat", "operator"],
)
def test_nothing_is_registered_twice(twice) -> None:
    with pytest.raises(RegistrationError, match="already"):
        twice()
    assert rule_for("relax.tanh", 0) is not None


def test_a_new_operator_is_a_record_and_a_gradient() -> None:
    describe("relax.new", kind=Kind.ELEMENTWISE)
    gradient("relax.new")(lambda use: use.grad)
    assert "relax.new" in supported_operators()
    assert record_of("relax.floor").is_flat and "relax.floor" not in supported_operators()
    assert record_of("relax.new").kind is Kind.ELEMENTWISE
