"""Gradient rules broken on purpose: the self-check alone refuses the program and names a parameter that they spoil."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from tvm import relax
from tvm.relax import op as R

import pock_tvm as pock
from relay_passes.gradients import Use
from relay_passes.gradients.pooling import _window
from relay_passes.ir import Expr, scalar, shape_of
from relay_passes.operators.record import record_of
from relay_passes.operators.registry import attributes_of
from relay_passes.operators.training import (
    avg_pool2d_gradient,
    cross_entropy_gradient,
    embedding_gradient,
    matmul,
    normalize_gradient,
)

Mutation = Callable[[Use, Callable[[Use], Expr]], Expr]
IMAGE = (2, 3, 6, 6)


@dataclass(frozen=True)
class Row:
    """A fault of one gradient rule, a network that uses the rule, and the parameters that train wrongly then."""

    fault: str
    rule: tuple[str, int]
    mutate: Mutation
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    spoiled: tuple[str, ...]


class Heads(nn.Module):
    """Softmax of a product of two linear layers; its square keeps it from being attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.query(x) @ self.key(x).transpose(1, 2), dim=-1).square() @ x


class Attention(nn.Module):
    """Attention whose values have a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(5, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, self.value(x))


class Tokens(nn.Module):
    """A head on a looked-up table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table((x.abs() * 3).long().clamp(max=6)))


def network(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


def scaled(factor: float) -> Mutation:
    return lambda use, rule: rule(use) * scalar(factor, use.result)


def flipped(*axes: int) -> Mutation:
    def mutate(use: Use, rule: Callable[[Use], Expr]) -> Expr:
        grad = rule(use)
        for axis in axes:
            grad = R.flip(grad, axis)
        return grad

    return mutate


def not_transposed(use: Use, _rule: Callable[[Use], Expr]) -> Expr:
    return matmul(use.grad, use.args[1], transpose_a=False, transpose_b=bool(use.call.attrs["transpose_b"]))


def negative(use: Use, rule: Callable[[Use], Expr]) -> Expr:
    return R.negative(rule(use))


def without_sum(use: Use, _rule: Callable[[Use], Expr]) -> Expr:
    return use.grad * use.result


def without_mean(use: Use, _rule: Callable[[Use], Expr]) -> Expr:
    return normalize_gradient(*use.args, use.grad, **(attributes_of(use.call) | {"center": False}))


def spread_evenly(use: Use, _rule: Callable[[Use], Expr]) -> Expr:
    size = list(shape_of(use.args[0])[1:3])
    return avg_pool2d_gradient(use.grad, **_window(use.call), count_include_pad=False, size=size)


def without_density(use: Use, _rule: Callable[[Use], Expr]) -> Expr:
    x = use.args[0]
    return use.grad * (R.erf(x * scalar(0.5**0.5, x)) + scalar(1, x)) * scalar(0.5, x)


def smoothed(use: Use, _rule: Callable[[Use], Expr]) -> Expr:
    return cross_entropy_gradient(*use.args, use.grad, **(attributes_of(use.call) | {"label_smoothing": 0.1}))


def first_row_only(use: Use, _rule: Callable[[Use], Expr]) -> Expr:
    rows, columns = shape_of(use.args[0])
    grad = R.reshape(use.grad, (-1, columns))
    count = shape_of(use.args[1])[0]
    return embedding_gradient(relax.const([0] * count, "int64"), grad, rows=rows)


def mean_of_rows(use: Use, rule: Callable[[Use], Expr]) -> Expr:
    return rule(use) * scalar(1 / shape_of(use.result)[0], use.result)


ROWS = [
    Row("data gradient of a convolution, doubled", ("relax.nn.conv2d", 0), scaled(2), network(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)), IMAGE, ("0.weight", "0.bias")),
    Row("weight gradient of a convolution, mirrored", ("relax.nn.conv2d", 1), flipped(0, 1), network(nn.Conv2d(3, 4, 3)), IMAGE, ("0.weight",)),
    Row("weight gradient of a depthwise convolution, zero", ("relax.nn.conv2d", 1), scaled(0), network(nn.Conv2d(3, 3, 3, groups=3)), IMAGE, ("0.weight",)),
    Row("left operand of a product, transposed", ("pock.matmul", 0), not_transposed, network(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4)), (3, 5), ("0.weight", "0.bias")),
    Row("right operand of a product, of the wrong sign", ("pock.matmul", 1), scaled(-1), network(nn.Linear(5, 3)), (4, 5), ("0.weight",)),
    Row("softmax without its sum", ("relax.nn.softmax", 0), without_sum, Heads, (2, 3, 5), ("query.weight", "query.bias", "key.weight", "key.bias")),
    Row("attention's values, of the wrong sign", ("pock.attention", 2), negative, Attention, (2, 3, 5), ("value.weight",)),
    Row("normalisation without its mean", ("pock.normalize", 0), without_mean, network(nn.Linear(5, 7), nn.LayerNorm(7)), (4, 5), ("0.weight", "0.bias")),
    Row("max-pooling to all of a window", ("relax.nn.max_pool2d", 0), spread_evenly, network(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)), IMAGE, ("0.weight",)),
    Row("embedding, all into one row", ("relax.take", 0), first_row_only, Tokens, (6,), ("table.weight",)),
    Row("GELU without its density", ("relax.nn.gelu", 0), without_density, network(nn.Linear(5, 7), nn.GELU()), (4, 5), ("0.weight", "0.bias")),
    Row("cross entropy, smoothed", ("pock.cross_entropy", 0), smoothed, network(nn.Linear(5, 4)), (3, 5), ("0.weight", "0.bias")),
    Row("broadcast operand, the mean of the rows", ("relax.add", 1), mean_of_rows, network(nn.Linear(5, 4)), (3, 5), ("0.bias",)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault)
def test_a_broken_gradient_rule_is_refused_by_the_check(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    exported = torch.export.export(row.make().eval(), (torch.randn(row.shape),))
    loss = "cross_entropy" if row.rule[0] == "pock.cross_entropy" else "mse"
    operator, operand = row.rule
    rules = record_of(operator).gradients
    entry = rules[operand]
    monkeypatch.setitem(rules, operand, replace(entry, rule=lambda use: row.mutate(use, entry.rule)))
    with pytest.raises(pock.CheckError) as caught:
        pock.compile(exported, loss=loss, check=True)
    assert any(f"'{name}'" in str(caught.value) for name in row.spoiled), str(caught.value)
