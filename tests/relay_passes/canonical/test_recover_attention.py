"""Attention as people write it becomes one operator; what only looks like it stays."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import tvm
from torch import Tensor, nn
from torch.nn import functional as F

from pock_tvm.frontend import load_model
from relay_passes import RecoverAttention, SimplifyMovement
from relay_passes.canonical.canonicalise import unify_operators
from relay_passes.ir import bindings_of, op_name, shape_of
from relay_passes.operators.registry import attributes_of
from tests.relay_passes.modules import operators, run
from tests.schedules.kernels import TARGETS

GPU, CPU = (TARGETS[name].layouts for name in ("opencl", "host"))
HEADS, TOKENS, KEYS, WIDTH = 2, 5, 7, 4
CAUSAL = torch.ones(TOKENS, KEYS, dtype=torch.bool).tril()


class Written(nn.Module):
    """A function of queries, keys, values, numbers and conditions for the mask, and a parameter."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body = body
        self.bias = nn.Parameter(torch.randn(HEADS, TOKENS, KEYS))
        self.keys = nn.Parameter(torch.randn(WIDTH, KEYS))
        self.register_buffer("causal", CAUSAL)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, added: Tensor) -> Tensor:
        return self.body(self, 2 * q, 2 * k, 2 * v, added)


def by_products(q: Tensor, k: Tensor, v: Tensor, mask: Callable[[Tensor], Tensor] = lambda scores: scores) -> Tensor:
    return mask(q @ k.mT).softmax(-1) @ v


FORMS: dict[str, Callable[..., Tensor]] = {
    "built in": lambda _m, q, k, v, _a: F.scaled_dot_product_attention(q, k, v),
    "built in, causal": lambda _m, q, k, v, _a: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "built in, added": lambda _m, q, k, v, a: F.scaled_dot_product_attention(q, k, v, a),
    "built in, conditions": lambda _m, q, k, v, a: F.scaled_dot_product_attention(q, k, v, a > 0),
    "not scaled": lambda _m, q, k, v, _a: by_products(q, k, v),
    "scaled after": lambda _m, q, k, v, _a: by_products(q, k, v, lambda s: s * 0.5),
    "scaled twice": lambda _m, q, k, v, _a: by_products(q * 0.7, k, v, lambda s: s / math.sqrt(WIDTH)),
    "filled": lambda _m, q, k, v, a: by_products(q, k, v, lambda s: (s / 2).masked_fill(a > 0, -torch.inf)),
    "filled, lowest": lambda _m, q, k, v, a: by_products(
        q, k, v, lambda s: torch.where(a > 0, s / 2, torch.finfo(torch.float32).min)
    ),
    "filled, causal": lambda m, q, k, v, _a: by_products(q, k, v, lambda s: s.masked_fill(~m.causal, -torch.inf)),
    "added": lambda _m, q, k, v, a: by_products(q, k, v, lambda s: 0.5 * s + a),
    "added, expanded": lambda _m, q, k, v, a: by_products(
        q, k, v, lambda s: a[:, :, :1].expand(-1, -1, TOKENS, -1) + 0.5 * s
    ),
    "added, causal": lambda m, q, k, v, _a: by_products(
        q, k, v, lambda s: s * 0.5 + torch.zeros(TOKENS, KEYS).masked_fill(~m.causal, -1e38)
    ),
    "keys swapped": lambda _m, q, k, v, _a: (q @ k.permute(0, 1, 3, 2).contiguous()).softmax(3) @ v,
    "einsum": lambda _m, q, k, v, _a: torch.einsum(
        "bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).div(2).softmax(-1), v
    ),
    "windows, added": lambda _m, q, k, v, a: (
        (q @ k.mT).view(1, 2, HEADS, TOKENS, KEYS).add(a.unsqueeze(0)).view(2, HEADS, TOKENS, KEYS).softmax(-1) @ v
    ),
    "bmm": lambda _m, q, k, v, _a: torch.bmm(
        torch.baddbmm(torch.zeros(2 * HEADS, TOKENS, KEYS), q.flatten(0, 1), k.flatten(0, 1).mT, alpha=0.5).softmax(2),
        v.flatten(0, 1),
    ),
    "added, filled": lambda _m, q, k, v, a: by_products(q, k, v, lambda s: (s + a).masked_fill(a > 0.5, -torch.inf)),
    "added, filled, causal": lambda m, q, k, v, a: by_products(
        q, k, v, lambda s: (s + a).masked_fill(~m.causal, -torch.inf)
    ),
    "filled, filled, causal": lambda m, q, k, v, a: by_products(
        q, k, v, lambda s: s.masked_fill(~m.causal, -1e38).masked_fill(a > 0.5, -1e38)
    ),
    "windows, added, added": lambda m, q, k, v, a: (
        (q @ k.mT + m.bias).view(1, 2, HEADS, TOKENS, KEYS).add(a.unsqueeze(0)).view(2, HEADS, TOKENS, KEYS).softmax(-1)
        @ v
    ),
    "keys, a parameter": lambda m, q, _k, v, _a: (q @ m.keys).softmax(-1) @ v,
    "added, a parameter": lambda m, q, k, v, _a: by_products(q, k, v, lambda s: s + m.bias),
}
OTHERS: dict[str, Callable[..., Tensor]] = {
    "weights read twice": lambda _m, q, k, v, _a: (lambda p: (p @ v).sum(-1) + p.sum(-1))((q @ k.mT).softmax(-1)),
    "scores read twice": lambda _m, q, k, v, _a: (lambda s: (s.softmax(-1) @ v).sum(-1) + s.sum(-1))(q @ k.mT),
    "a product of weights": lambda _m, q, k, v, a: ((q @ k.mT).softmax(-1) * a) @ v,
    "softmax of columns": lambda _m, q, k, v, _a: (q @ k.mT).softmax(-2) @ v,
    "scaled after the mask": lambda _m, q, k, v, a: ((q @ k.mT + a) * 0.5).softmax(-1) @ v,
    "added after conditions": lambda m, q, k, v, a: ((q @ k.mT).masked_fill(~m.causal, -1e9) + a).softmax(-1) @ v,
    "conditions for two numbers": lambda m, q, k, v, a: (
        (q @ k.mT).masked_fill(a > 1, -1e9).masked_fill(~m.causal, -1e8).softmax(-1) @ v
    ),
    "windows cut otherwise": lambda m, q, k, v, a: (
        (q @ k.mT + a).view(1, 2 * HEADS, TOKENS, KEYS).add(m.bias[:1]).view(2, HEADS, TOKENS, KEYS).softmax(-1) @ v
    ),
    "scaled by what is not constant": lambda _m, q, k, v, a: ((q @ k.mT) * a.sum()).softmax(-1) @ v,
    "no product": lambda _m, _q, _k, v, a: a.softmax(-1) @ v,
}


def canonical(body: Callable[..., Tensor]) -> tvm.IRModule:
    torch.manual_seed(0)
    shapes = [(2, HEADS, TOKENS, WIDTH), (2, HEADS, KEYS, WIDTH), (2, HEADS, KEYS, 3), (2, 1, TOKENS, KEYS)]
    inputs = tuple(torch.randn(shape) for shape in shapes)
    mod = load_model(torch.export.export(Written(body).eval(), inputs)).module
    return tvm.transform.Sequential([*unify_operators(), SimplifyMovement()])(mod)


def recovered(mod: tvm.IRModule) -> list[tuple[int, bool]]:
    """Of each attention, the number of its masks and whether it is causal."""
    values = [each.value for each in bindings_of(mod["main"]) if op_name(each.value) == "pock.attention"]
    return [(len(value.args[3].fields), attributes_of(value)["causal"]) for value in values]


@pytest.mark.parametrize("name", FORMS)
def test_attention_is_one_operator(name: str) -> None:
    mod = canonical(FORMS[name])
    fused = RecoverAttention(GPU)(mod)
    assert "relax.nn.softmax" not in operators(fused) and "pock.safe_softmax" not in operators(fused)
    assert "pock.matmul" not in operators(fused)
    is_causal = "causal" in name
    masks = sum(name.count(word) for word in ("added", "conditions", "filled"))
    assert recovered(fused) == [(masks - is_causal if masks else 0, is_causal)]
    assert operators(RecoverAttention(CPU)(mod)) == operators(fused)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape_of(param)).astype("float32") for param in mod["main"].params]
    np.testing.assert_allclose(run(fused, *arrays), run(mod, *arrays), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_attention_stays(name: str) -> None:
    mod = canonical(OTHERS[name])
    assert operators(RecoverAttention(GPU)(mod)) == operators(mod)


def test_two_masks_are_too_many_bindings_for_webgpu() -> None:
    mod, layouts = canonical(FORMS["added, filled"]), TARGETS["webgpu"].layouts
    assert operators(RecoverAttention(layouts)(mod)) == operators(mod)
    assert operators(RecoverAttention(layouts)(canonical(FORMS["added"]))) != operators(mod)


@pytest.mark.parametrize(("name", "trained"), [("added, a parameter", "bias"), ("keys, a parameter", "keys")])
def test_what_needs_another_gradient_stays(name: str, trained: str) -> None:
    mod = canonical(FORMS[name])
    assert operators(RecoverAttention(GPU, [trained])(mod)) == operators(mod)
