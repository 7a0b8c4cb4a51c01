"""Updates that compute their gradients themselves: ``compile`` compares each program's with PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tvm import relax, topi
from tvm.relax import op as R

import pock_tvm as pock
from relay_passes import FuseUpdates
from schedules.kernels.matmul import matmul
from schedules.kernels.update import Layout, sgd
from tests.relay_passes.modules import operators


class Words(nn.Module):
    """An embedding of more words than a batch has, some twice, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.last = nn.Embedding(50, 7), nn.Linear(7, 33), nn.Linear(33, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(self.words(x)).tanh().mean(1))


def program(scheme: dict[str, Any] | None = None, **options: Any) -> pock.Program:
    torch.manual_seed(0)
    tokens = torch.tensor([[3, 49, 3, 0], [1, 49, 7, 3]])
    exported = torch.export.export(Words(), (tokens,))
    scheme = {"*": "frozen"} | scheme if scheme else {"*": "full"}
    return pock.compile(exported, scheme=pock.Scheme(scheme), loss="cross_entropy", **options)


def kernels(made: pock.Program) -> set[str]:
    """The kernels of gradients and updates of matrices, without hashes and numbers."""
    stems = {name.rsplit("_", 1)[0] for name in made.manifest["kernels"]}
    plain = {"".join(letter for letter in stem if not letter.isdigit()) for stem in stems}
    chosen = {stem for stem in plain if any(part in stem for part in ("sgd_", "adam_", "gradient", "positions"))}
    return chosen - {"cross_entropy_gradient"}


GATHERED = {"first_positions", "gathered_gradient"}


@pytest.mark.parametrize(
    ("optimizer", "name"), [(pock.SGD(momentum=0.9, nesterov=True), "sgd"), (pock.AdamW(weight_decay=0.1), "adam")]
)
def test_gradients_are_not_in_memory(optimizer: Any, name: str) -> None:
    assert kernels(program(optimizer=optimizer)) == GATHERED | {f"{name}_embedding_gradient", f"{name}_matmul"}


def test_a_part_of_a_weight_is_updated_by_its_product() -> None:
    assert "sgd_matmul" in kernels(program({"first.weight": 0.5, "last.*": "full"}))


@pytest.mark.parametrize("options", [{"clip_norm": 1.0}, {"guard": "step"}])
def test_gradients_that_are_waited_for_stay(options: dict[str, Any]) -> None:
    found = kernels(program(**options))
    assert "embedding_gradient" in found and not (GATHERED | {"sgd_matmul"}) & found


def test_repeated_and_negative_indices_are_added() -> None:
    """Against PyTorch in double precision, with Adam: rows that no index reads move, too."""
    made = program(optimizer=pock.Adam())
    trainer = pock.Trainer(made)
    torch.manual_seed(0)
    model = Words().double()
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(3):
        x, y = np.array([[3, 3, 3, step], [step, 49, 7, 3]]), np.array([0, 2])
        trainer.step(x, y, lr=1e-2)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.tensor(x)), torch.tensor(y)).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(trainer.weights()[name], value.numpy(), atol=1e-5)


class Steep(nn.Module):
    """Elements of the last weight's gradient are products of numbers around 1e10 and 1e30."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.last(self.first(x).sigmoid() * 1e10) * 1e30)


def test_factors_that_may_overflow_stop_the_step() -> None:
    """The product itself is never in memory, so that it cannot be looked at before it is applied."""
    torch.manual_seed(0)
    model = Steep()
    nn.init.zeros_(model.last.weight)
    scheme = pock.Scheme({"*": "frozen", "last.weight": "full"})
    made = pock.compile(
        torch.export.export(model, (torch.ones(5, 4),)), scheme=scheme, loss="mse", optimizer=pock.SGD(), check=False
    )
    assert "sgd_matmul" in kernels(made)
    trainer = pock.Trainer(made)
    with pytest.raises(
        pock.NonFiniteError, match=r"'last\.weight' is not finite: its factors hold .* Nothing has changed"
    ):
        trainer.step(np.ones((5, 4), "float32"), np.ones((5, 3), "float32"), lr=1e-3)
    np.testing.assert_array_equal(trainer.weights()["last.weight"], model.last.weight.detach().numpy())


class Table(nn.Module):
    """A parameter that is read by indices along two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(30, 6))

    def forward(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return self.table[rows, columns]


def test_indices_along_two_axes_keep_the_gradient() -> None:
    torch.manual_seed(0)
    exported = torch.export.export(Table(), (torch.tensor([0, 4, 4]), torch.tensor([1, 5, 5])))
    assert "embedding_gradient" in kernels(pock.compile(exported, loss="mse", scheme=pock.Scheme.full()))


def test_a_product_of_what_is_no_temporary_stays() -> None:
    """Tiles of the weight would be read after their update; inputs may be as large as they like."""
    for read, fused in (("w", False), ("x", False), ("y", True)):
        builder = relax.BlockBuilder()
        params = [relax.Var(name, relax.TensorType((8, 8), "float32")) for name in ("x", "w", "dy")]
        rates = relax.Var("rates", relax.TensorType((1,), "float32"))
        plain = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}
        update = builder.add_func(sgd(Layout((8, 8), "float32"), **plain, vectors={"rates": 1}), "sgd")
        x, w, given = params
        with builder.function("main", [*params, rates]):
            with builder.dataflow():
                y, dy = builder.emit_te(topi.tanh, x), builder.emit_te(topi.tanh, given)
                operand = builder.emit(R.reshape({"x": x, "w": w, "y": y}[read], (8, 8)))
                gradient = builder.emit_te(matmul, operand, dy, transpose_a=True, transpose_b=False)
                call = R.call_tir_inplace(update, relax.Tuple([w, gradient, rates]), [0], w.ty)
                new = builder.emit_output(call)
            builder.emit_func_output(new)
        calls = operators(FuseUpdates()(builder.get()))
        assert (calls.count("relax.call_tir") < 3) == fused and "relax.call_tir_inplace" in calls
