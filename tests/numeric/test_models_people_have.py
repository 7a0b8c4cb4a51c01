"""What people write into their models, one row a kind: two steps equal PyTorch's, or the model is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import pock_tvm as pock
from tests.numeric.draws import Draw, below, lengths, normal
from tests.numeric.parity import assert_parity

Parts = dict[str, nn.Module]


class Model(nn.Module):
    """Layers, and a function of them and of inputs that may give several results."""

    def __init__(self, parts: Parts, function: Callable[..., Any]) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleDict(parts), function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        results = self.function(self.parts, *inputs)
        return results if isinstance(results, torch.Tensor) else torch.cat([result.flatten() for result in results])


@dataclass(frozen=True)
class Row:
    """A kind of thing, the layers of a model that has it, the model's function and what its inputs are drawn from."""

    name: str
    parts: Callable[[], Parts]
    function: Callable[..., Any]
    inputs: tuple[Draw, ...]
    options: dict[str, Any] = field(default_factory=dict)


def linear(width: int = 4, out: int = 4) -> Callable[[], Parts]:
    return lambda: {"linear": nn.Linear(width, out)}


def conv(channels: int = 3, out: int = 4) -> Callable[[], Parts]:
    return lambda: {"conv": nn.Conv2d(channels, out, 3, padding=1)}


def table(**options: Any) -> Callable[[], Parts]:
    return lambda: {"table": nn.Embedding(7, 4, **options), "linear": nn.Linear(4, 3)}


def applied(parts: Parts, x: torch.Tensor) -> list[torch.Tensor]:
    """Every layer but the first to what the first gives."""
    first, *others = parts.values()
    y = first(x)
    return [other(y) for other in others]


# ---- functions that need more than an expression ---------------------------------------------------------------------


def without_autocast(m: Parts, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        y = m["linear"](x)
        with torch.no_grad():
            scale = y.abs().mean()
    with torch.autocast("cuda"), torch.no_grad():
        shift = y.mean(0)
    return y.tanh() * scale + shift


def spectra(m: Parts, x: torch.Tensor) -> list[torch.Tensor]:
    y = m["linear"](x)
    z = torch.fft.fft(y) * (2 - 1j) + y
    quotient = z.conj() / (z * z.abs() + (3 + 1j))
    filled = z.masked_fill(y > 0, 1j) - torch.ones(3, 4, dtype=torch.cfloat)
    mask = (torch.arange(4) > 1).float()
    rows = torch.cat([z, torch.complex(y, -y), torch.polar(y.abs(), y)]).roll(1, -1)[1:, ::2]
    results = [
        quotient,
        (z @ z.mT) ** 2,
        filled,
        F.pad(z, (1, 1)),
        torch.stack([rows, rows.exp() * 1e-2]),
        (z + 5).log(),
        torch.stack(
            [z.sqrt(), z.square(), z.rsqrt(), z**-1, z**1.5, z**y, 2**z, (0.1 * z) ** z, z.sgn(), (z * mask).sgn()]
        ),
        torch.stack([z.sin(), z.cos(), z.sinh(), z.cosh(), z.tanh(), z.tan(), z.sigmoid(), (z * 40 + 70).tanh()]),
    ]
    return [part for result in results for part in (result.real, result.imag)] + [z.angle(), torch.fft.irfft(z, n=5)]


def promoted(m: Parts, x: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    h = m["linear"](x)
    factors = [
        ids * 0.3, ids / 3, ids - 0.5, (ids > 2) * 1.5, ids // 2, ids % 2.5, 2.0**-ids, mask * ids, ids.clamp(max=2.5),
        torch.where(mask, ids, 0.5), torch.where(mask, 2, 0.5), 1 - mask.to(x.dtype), ids.to(x.dtype) * mask,
        torch.add(ids, ids, alpha=2), mask + mask, torch.true_divide(ids, 2), ids.pow(2) * 0.1, torch.minimum(ids, ids // 2),
    ]  # fmt: skip
    rows = [
        1 / mask.sum(1),
        ids.to(x.dtype).mean(1),
        F.pad(ids[:, 0], (0, 1), value=3)[1:],
        mask.sum(1) / mask.shape[1],
        (mask * 1.0).sum(1),
        ids.sum(1) * 0.1,
    ]
    return [h * factor[..., None] for factor in factors] + [h * row[:, None, None] for row in rows]


def scaled_sums(m: Parts, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    a, b = m["linear"](x), y
    square, batch = a[0], a.transpose(1, 2)
    return [
        torch.add(a, b, alpha=0.3), torch.sub(a, b, alpha=2), torch.sub(b, a, alpha=0.5), torch.rsub(a, b, alpha=3), a.add(1, alpha=0.1),
        torch.addmm(b[0], square, b[0].T, beta=0.5, alpha=2) if b.shape[1] == b.shape[2] else a,
        torch.baddbmm(b @ b.transpose(1, 2), a, batch, beta=0.2, alpha=-1.5), torch.addcmul(b, a, a, value=0.7),
        torch.addcdiv(b, a, b.abs() + 1, value=-0.2), torch.lerp(a, b, 0.3), torch.lerp(a, b, b.abs()),
    ]  # fmt: skip


def indexed(m: Parts, x: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> list[torch.Tensor]:
    h = m["linear"](x)  # [5, 6, 4]
    return [
        h[i, j], h[:, i, j % 4], h[i, :, j % 4], h[..., i, j % 4], h[None, i], h[i, None, j], h[-1, i], h[i, -2], h[i][:, j], h[i[:, None], j],
        h[:, [0, 2, -1]], h[:, [0, 2]][..., [1, 1]], h[i - 5], h[:, i - 5, 1:3], h[-i, 1:, ::2], h[:, -j, -1],
    ]  # fmt: skip


def masked_attention(m: Parts, x: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    scores = m["linear"](x) @ x.transpose(1, 2)
    keep = mask[:, None]
    return [
        m["attention"](x, x, x, key_padding_mask=~mask, need_weights=False)[0],
        m["attention"](x, x, x, key_padding_mask=~mask)[1], scores.masked_fill(~keep, float("-inf")).softmax(-1),
        (scores + (1 - keep.to(x.dtype)) * -10000.0).softmax(-1), torch.where(keep, scores, torch.tensor(-1e9)).log_softmax(-1),
        F.scaled_dot_product_attention(scores, x @ x.transpose(1, 2), x, keep.expand(-1, 5, -1)),
        (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1) * m["linear"](x)[:, 0],
    ]  # fmt: skip


def regions(m: Parts, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        frozen = torch.tanh(m["first"](x))
        with torch.enable_grad():
            back = m["second"](frozen)
        target = m["second"](frozen)
    live = m["second"](m["first"](x))
    return [m["second"](frozen), live.detach() * live, live - target, back * 2, live.detach().relu() + frozen[:, :2]]


def straight_through(m: Parts, x: torch.Tensor) -> list[torch.Tensor]:
    h = m["linear"](x)
    rounded = (h * 4).round() / 4
    hard = F.one_hot(h.argmax(-1), h.shape[-1]).to(h.dtype)
    soft = h.softmax(-1)
    return [
        h + (rounded - h).detach(),
        (hard - soft).detach() + soft,
        h.sign().detach() - h.clamp(-1, 1).detach() + h.clamp(-1, 1),
    ]


def changed_in_place(m: Parts, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    h = m["linear"](x)
    a, b, c, d = h.clone(), h * 2, torch.zeros_like(h), h + 1
    a[:, 0] = y[:, 1]
    a[..., -1] += 1
    b.mul_(y).add_(h, alpha=0.5)
    c[:, 1:3] = h[:, :2]
    d.masked_fill_(y > 0, 0.5).clamp_(min=-1)
    return [a, b, c, d, torch.relu_(h - 0.1)]


def reductions(m: Parts, x: torch.Tensor) -> list[torch.Tensor]:
    h = m["linear"](x)
    return [
        h.var(-1), h.var(-1, correction=0), h.var((0, 2), correction=2, keepdim=True), h.std(1, unbiased=False), h.std(), *torch.var_mean(h, -1),
        *torch.std_mean(h, (1, 2), correction=0), h.norm(dim=-1), h.norm(p=1, dim=1), torch.linalg.vector_norm(h, 3, dim=(0, 1)), h.norm(),
        torch.linalg.vector_norm(h, float("inf"), dim=-1), h.logsumexp(1), h.logsumexp((1, 2), keepdim=True), h.amax((1, 2)), h.amin(0, keepdim=True),
        h.mean(), h.sum((-1, 0)), h.cumsum(-2), h.cummax(1)[0], h.cummin(-1)[0], h.logcumsumexp(1), F.normalize(h, dim=1), F.normalize(h, p=1.0, dim=-1, eps=0.1), F.cosine_similarity(h, x, dim=-1),
        h.max(1).values, h.min(-1)[0], h.max(), h.abs().mean(-1, keepdim=True),
        *torch.native_layer_norm(h, (4,), None, None, 1e-3),  # PyTorch gives its statistics no gradient
    ]  # fmt: skip


def moved(m: Parts, x: torch.Tensor) -> list[torch.Tensor]:
    h = m["linear"](x)  # [2, 6, 4]
    return [
        *h.chunk(4, 1), *h.split([1, 2, 3], dim=-2), *h.split(4, 1), *torch.tensor_split(h, 4, 1), *h.split([0, 2, 0, 4], 1), *h.unbind(-1)[1:3], torch.stack(h.unbind(1)[::2], -1),
        h.roll(1, 1), h.roll((-2, 1), (0, -1)), h.roll(3), h.flip(-1, 0), h.narrow(1, -3, 2), h[:, -3:-1], h.select(-1, -2), h[:, ::2, 1:],
        h.repeat(1, 2, 1, 1), h.expand(3, -1, -1, -1), h[:, :1].expand(-1, 3, -1), h.repeat_interleave(2, 1), h.tile(2, 1), h.movedim(0, -1), h.swapaxes(-1, 1),
        h.unflatten(1, (2, -1)).transpose(1, 3), h[:, None].squeeze(1), h.unsqueeze(-2).squeeze((0, 2)), h.tril(-1), h.triu(1), h.diagonal(dim1=1, dim2=2),
        torch.rot90(h, 1, (1, 2)), F.pixel_shuffle(h.reshape(1, 8, 3, 2), 2), F.pixel_unshuffle(h.reshape(1, 2, 6, 4), 2), h.unfold(1, 3, 2), h.mT, h.T if h.ndim == 2 else h.mH,
    ]  # fmt: skip


def products(m: Parts, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    h = m["linear"](x)  # [2, 3, 4]
    v, w = h[0, 0], y[0].T  # [4], [4, 3]
    return [
        v @ v, h[0] @ v, v @ w, h @ v, v @ h.mT, h @ w, h[:, None] @ y.mT, torch.outer(v, y[0, 1]), torch.bmm(h, y.mT), torch.mv(h[0], v), torch.dot(v, y[1, 1]),
        torch.tensordot(h, w, dims=1), torch.tensordot(h, y, dims=([0, 1], [0, 1])), m["linear"](v), m["linear"](x.transpose(0, 1)), F.linear(h.mT, y[:, :, 0]),
        torch.einsum("bij,bkj->bik", h, y), torch.einsum("bij,bij->bi", h, y), torch.einsum("...i,oi->...o", h, y[0]), torch.einsum("bij->bji", h), torch.einsum("bij->j", h),
        torch.einsum("bij,bkj,bi->bk", h, y, y[..., 0]), torch.einsum("bij,kl->bijkl", h[:1], y[1]),  torch.inner(h, y), torch.linalg.multi_dot([h[0], w, h[1]]),
    ]  # fmt: skip


def made_inside(m: Parts, x: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
    h = m["linear"](x)  # [2, 5, 4]
    places = torch.arange(5)
    distance = (places[None] - places[:, None]).clamp(-2, 2) + 2
    return [
        h * torch.linspace(-1, 1, 4), h + torch.arange(0, 2, 0.5), h @ torch.eye(4), h * torch.ones_like(h), h + torch.full_like(h, 2), F.one_hot(ids, 7).to(x.dtype)[..., :4] * h,
        h * x.new_ones(5, 1), m["table"](distance).sum() * h,
        torch.cat([x.new_zeros(2, 1, 4), h], 1), h * torch.tril(torch.ones(5, 5))[:, :4], h.masked_fill(torch.ones(5, 4, dtype=torch.bool).triu(1), -2.0),
    ]  # fmt: skip


def gathered(m: Parts, x: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
    h = m["linear"](x)  # [5, 6, 4]
    return [
        h.gather(1, ids[..., None].expand(-1, -1, 4)), h.gather(-1, ids[:, :, None] % 4), torch.take_along_dim(h, ids[..., None], -2), h.index_select(-2, ids[0]),
        torch.take(h, ids),
        h[torch.arange(5), ids[:, 0]], h[:, ids[0], :].select(1, -1),
    ]  # fmt: skip


def positions(m: Parts, mask: torch.Tensor) -> list[torch.Tensor]:
    steps = mask.long().cumsum(1)
    return [
        m["linear"](m["table"](steps * mask)), m["table"]((steps - 1).clamp(min=0)), m["table"]((mask.cumsum(-1, dtype=torch.long) - 1).masked_fill(~mask, 1)),
        m["table"](mask.flip(1).long().cumsum(1)) * (mask.to(torch.float32).cumsum(1) / steps.clamp(min=1))[..., None],
    ]  # fmt: skip


def activations(m: Parts, x: torch.Tensor) -> list[torch.Tensor]:
    h = m["linear"](x) * 30  # from -100 to 100: where formulas overflow
    return [
        F.elu(h), F.elu(h, 0.5), F.celu(h, 2.0), F.selu(h), F.hardsigmoid(h), F.hardswish(h), F.mish(h), F.softsign(h), F.tanhshrink(h), F.softshrink(h, 0.3),
        F.hardshrink(h), F.threshold(h, 0.1, -2), F.logsigmoid(h), F.glu(h), F.gelu(h), F.gelu(h, approximate="tanh"), F.leaky_relu(h, 0.2), F.prelu(h, m["prelu"].weight),
        F.hardtanh(h, -2, 0.5), F.softplus(h), F.softplus(h, 3, 5), F.relu6(h), F.silu(h), torch.sigmoid(h), torch.tanh(h), h.clamp(-1), h.clamp(max=h.mean()), torch.logaddexp(h, -h),
        F.softmin(h, 1), torch.log1p(h.abs()), torch.expm1(h / 50), torch.atan(h), h.sin(), h.abs().sqrt(), (h.abs() + 1).rsqrt(), h.abs().pow(1.5), 1 / (h * h + 1), torch.erf(h),
    ]  # fmt: skip


def written(m: Parts, x: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, mask: torch.Tensor) -> Any:
    h = m["linear"](x)  # [5, 6, 4]
    y = h.clone()
    y[:, 0] = 0.5
    y[:, 1::2] = h[:, ::2] * 2
    y[torch.tensor([0, 3]), :, 1] = h[1:3, :, 2]
    y[mask] = 0.0
    return [
        y, h.index_put((rows,), h[:3] * 2, accumulate=True), h.index_add(0, rows, h[:3]), h.scatter_add(2, places, h[..., :2]), h.scatter(2, places, -math.inf).softmax(-1),
        h.scatter_reduce(2, places, h[..., 1:3] * 0.7, "mean", include_self=False), h.scatter_reduce(2, places, h[..., 1:3] * 1.3, "amax"),
        h.masked_scatter(mask[..., None], h.flip(0)), torch.zeros(5, 4).index_copy(0, torch.tensor([2, 0]), h[:2, 0]),
    ]  # fmt: skip


def losses(m: Parts, x: torch.Tensor, labels: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = m["linear"](x)  # [6, 4]
    p = torch.sigmoid(h)
    some = labels.masked_fill(labels == 1, -100)
    return sum([
        F.cross_entropy(h, labels), F.cross_entropy(h, labels, label_smoothing=0.1), F.cross_entropy(h, some), F.cross_entropy(h, labels, torch.tensor([0.5, 1, 2, 0.1])),
        F.cross_entropy(h, y.softmax(-1)), F.cross_entropy(h, labels, reduction="sum"), F.cross_entropy(h.T[None], labels[None]),
        F.nll_loss(h.log_softmax(-1), labels), F.mse_loss(h, y), F.l1_loss(h, y, reduction="sum"), F.smooth_l1_loss(h, y, beta=0.3), F.huber_loss(h, y, delta=0.5),
        F.binary_cross_entropy(p, y.sigmoid()), F.binary_cross_entropy_with_logits(h, y.sigmoid(), pos_weight=torch.tensor([1.0, 2, 3, 4])),
        F.kl_div(h.log_softmax(-1), y.softmax(-1), reduction="batchmean"), F.kl_div(h.log_softmax(-1), y.log_softmax(-1), log_target=True, reduction="sum"),
        F.cosine_embedding_loss(h, y, torch.ones(6)), F.triplet_margin_loss(h, y, y.flip(0)), F.margin_ranking_loss(h[:, 0], y[:, 0], y[:, 1].sign(), margin=0.2),
        F.soft_margin_loss(h, y.sign()), F.poisson_nll_loss(h, y.exp()), F.hinge_embedding_loss(h, y.sign()),
        F.multilabel_soft_margin_loss(h, (y > 0).float()), F.cross_entropy(F.normalize(h) @ F.normalize(y).T, torch.arange(6)), ((1 - p) ** 2 * F.softplus(-h)).mean(),
    ])  # fmt: skip


def asserted(m: Parts, ids: torch.Tensor) -> torch.Tensor:
    torch._check((ids != 0).sum(1).max().item() <= 5)
    return m["linear"](m["table"](ids))


# ---- the kinds -------------------------------------------------------------------------------------------------------

IMAGE = (normal(2, 3, 7, 6),)
WORDS = (below(7, 2, 5),)
ROWS = [
    Row("numbers of different types", linear(), promoted, (normal(2, 5, 4), below(5, 2, 5), lengths(2, 5))),
    Row("sums with factors", linear(), scaled_sums, (normal(2, 4, 4), normal(2, 4, 4))),
    Row("embedding with padding_idx", table(padding_idx=0), lambda m, ids: m["linear"](m["table"](ids)), WORDS),
    Row("embedding with padding_idx from the end", table(padding_idx=-1), lambda m, ids: m["linear"](m["table"](6 - ids)), WORDS),
    Row("an assertion on what an input holds", table(), asserted, WORDS),
    Row("parameters without elements", lambda: {"linear": nn.Linear(4, 4), "none": nn.Embedding(0, 4), "unread": nn.Embedding(0, 2)}, lambda m, x: torch.cat([m["linear"](x), m["none"].weight]), (normal(3, 4),)),
    Row("functional embedding", table(), lambda m, ids: F.embedding(ids, m["table"].weight * 2, padding_idx=2), WORDS),
    Row("advanced indices", linear(), indexed, (normal(5, 6, 4), below(5, 3), below(6, 3))),
    Row("gather and scatter", linear(), gathered, (normal(5, 6, 4), below(6, 5, 6))),
    Row("written by index", linear(), written, (normal(5, 6, 4), below(5, 3), below(4, 5, 6, 2), lengths(5, 6))),
    Row("positions from a mask", table(), positions, (lengths(3, 5),)),
    Row("max over time", linear(), lambda m, x: [m["linear"](x).max(1)[0], F.adaptive_max_pool1d(m["linear"](x).mT, 1), F.max_pool1d(m["linear"](x).mT, 5), m["linear"](x).amax(1)], (normal(2, 5, 4),)),
    Row("key padding masks", lambda: {"linear": nn.Linear(4, 4), "attention": nn.MultiheadAttention(4, 2, batch_first=True)}, masked_attention, (normal(2, 5, 4), lengths(2, 5))),
    Row("encoder with a padding mask", lambda: {"encoder": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)}, lambda m, x, mask: m["encoder"](x, src_key_padding_mask=~mask) * mask[..., None], (normal(2, 5, 8), lengths(2, 5))),
    Row("decoder with a causal mask", lambda: {"decoder": nn.TransformerDecoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")}, lambda m, x, y: m["decoder"](x, y, tgt_mask=nn.Transformer.generate_square_subsequent_mask(5), tgt_is_causal=True), (normal(2, 5, 8), normal(2, 3, 8))),
    Row("regions without gradients", lambda: {"first": nn.Linear(4, 3), "second": nn.Linear(3, 2)}, regions, (normal(5, 4),)),
    Row("straight-through estimators", linear(), straight_through, (normal(5, 4),)),
    Row("tensors changed in place", linear(), changed_in_place, (normal(2, 3, 4), normal(2, 3, 4))),
    Row("average pools", lambda: {"conv": nn.Conv2d(3, 4, 1), "a": nn.AvgPool2d(3, 2, 1, ceil_mode=True), "b": nn.AvgPool2d(3, 2, 1, True, False), "c": nn.AvgPool2d(2, divisor_override=3), "d": nn.AvgPool2d((3, 2), (2, 3), (1, 0), ceil_mode=True), "e": nn.AvgPool2d(3, 1, ceil_mode=True, divisor_override=2), "f": nn.AdaptiveAvgPool2d((1, None)), "g": nn.AdaptiveAvgPool2d((7, 3)), "h": nn.LPPool2d(2, 2)}, applied, IMAGE),
    Row("max pools", lambda: {"conv": nn.Conv2d(3, 4, 1), "a": nn.MaxPool2d(3, 2, 1, ceil_mode=True), "b": nn.MaxPool2d(2, 1, dilation=2), "c": nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=True), "d": nn.MaxPool2d((2, 3), (3, 1), (1, 1)), "e": nn.AdaptiveMaxPool2d(1)}, applied, IMAGE),
    Row("pools of sequences", lambda: {"conv": nn.Conv1d(3, 4, 1), "a": nn.MaxPool1d(3, 2, 1, ceil_mode=True), "b": nn.AvgPool1d(3, 2, 1, True), "c": nn.AvgPool1d(2, count_include_pad=False), "d": nn.AdaptiveAvgPool1d(1), "e": nn.MaxPool1d(2, dilation=2)}, applied, (normal(2, 3, 8),)),
    Row("convolutions with odd options", lambda: {"conv": nn.Conv2d(3, 4, 1), "a": nn.Conv2d(4, 4, (2, 4), padding="same"), "b": nn.Conv2d(4, 8, 3, padding="valid", groups=2, stride=2), "c": nn.Conv2d(4, 2, 3, padding=(2, 0), dilation=(1, 2), bias=False), "d": nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=4)}, applied, IMAGE),
    Row("volumes", lambda: {"conv": nn.Conv3d(2, 4, 3, padding=1), "a": nn.Conv3d(4, 6, (2, 3, 1), stride=(2, 1, 2), dilation=(2, 1, 1), groups=2), "b": nn.MaxPool3d((2, 3, 2), (1, 2, 2), (1, 1, 0), ceil_mode=True), "c": nn.AvgPool3d(2, (1, 2, 1), 1, count_include_pad=False, ceil_mode=True), "d": nn.AvgPool3d((1, 3, 2), divisor_override=5), "e": nn.AdaptiveAvgPool3d((3, 2, 1))}, applied, (normal(2, 2, 5, 6, 4),)),
    Row("padding modes of convolutions", lambda: {"conv": nn.Conv2d(3, 4, 1), "a": nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"), "b": nn.Conv2d(4, 2, 3, padding=(2, 1), padding_mode="replicate"), "c": nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")}, applied, IMAGE),
    Row("pads", conv(), lambda m, x: [F.pad(m["conv"](x), (1, 2)), F.pad(m["conv"](x), (0, -1, 2, 0), value=-0.5), F.pad(m["conv"](x), (1, 0, 0, 2), mode="reflect"), F.pad(m["conv"](x), (2, 1, 1, 1), mode="replicate"), F.pad(m["conv"](x), (0, 0, 0, 0, 1, 1), value=1.0), nn.ZeroPad2d(1)(m["conv"](x))], IMAGE),
    Row("transposed convolutions", lambda: {"conv": nn.Conv2d(3, 4, 1), "a": nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1), "b": nn.ConvTranspose2d(4, 4, 3, stride=(3, 2), padding=1, output_padding=(2, 0), groups=2), "c": nn.ConvTranspose2d(4, 2, 2, dilation=2, bias=False)}, applied, IMAGE),
    Row("a transposed convolution alone", lambda: {"conv": nn.ConvTranspose2d(3, 4, 4, 2, 1)}, lambda m, x: m["conv"](x, output_size=(14, 13)), IMAGE),
    Row("transposed convolutions of sequences", lambda: {"conv": nn.Conv1d(3, 4, 1), "a": nn.ConvTranspose1d(4, 3, 4, 2, 1, output_padding=1), "b": nn.Conv1d(4, 3, 3, padding="same", dilation=2)}, applied, (normal(2, 3, 8),)),
    Row("transposed convolutions of volumes", lambda: {"conv": nn.Conv3d(2, 4, 1), "a": nn.ConvTranspose3d(4, 2, 3, 2, 1, output_padding=1), "b": nn.ConvTranspose3d(4, 4, (3, 2, 1), (1, 2, 1), (2, 0, 0), groups=2, dilation=(2, 1, 1)), "c": nn.ConvTranspose3d(4, 2, (1, 2, 2), (2, 1, 1), bias=False)}, applied, (normal(2, 2, 3, 4, 3),)),
    Row("layer norms", lambda: {"linear": nn.Linear(4, 4), "a": nn.LayerNorm(4, elementwise_affine=False), "b": nn.LayerNorm(4, bias=False), "c": nn.LayerNorm((3, 4), eps=0.1), "d": nn.RMSNorm(4), "e": nn.RMSNorm((3, 4), eps=0.1, elementwise_affine=False), "f": nn.LayerNorm((2, 3, 4))}, applied, (normal(2, 3, 4),)),
    Row("group and instance norms", lambda: {"conv": nn.Conv2d(3, 4, 1), "a": nn.GroupNorm(2, 4), "b": nn.GroupNorm(1, 4, affine=False), "c": nn.GroupNorm(4, 4, eps=0.1), "d": nn.InstanceNorm2d(4, eps=0.1), "e": nn.InstanceNorm2d(4, affine=True), "f": nn.BatchNorm2d(4, affine=False, eps=0.1), "g": nn.BatchNorm2d(4, eps=0.2)}, applied, IMAGE),
    Row("norms of sequences and rows", lambda: {"conv": nn.Conv1d(3, 4, 1), "a": nn.GroupNorm(2, 4), "b": nn.InstanceNorm1d(4, affine=True, eps=0.2), "c": nn.BatchNorm1d(4), "d": nn.Sequential(nn.Flatten(), nn.GroupNorm(4, 32), nn.BatchNorm1d(32))}, applied, (normal(2, 3, 8),)),
    Row("weight and spectral norm", lambda: {"linear": nn.Linear(4, 4), "a": parametrizations.weight_norm(nn.Linear(4, 3)), "b": parametrizations.weight_norm(nn.Linear(4, 3), dim=1), "c": parametrizations.spectral_norm(nn.Linear(4, 5)).eval()}, applied, (normal(3, 4),)),
    Row("weight norm of convolutions", lambda: {"conv": nn.Conv2d(3, 4, 1), "a": parametrizations.weight_norm(nn.Conv2d(4, 3, 3)), "b": parametrizations.weight_norm(nn.ConvTranspose2d(4, 3, 2))}, applied, IMAGE),
    Row("a layer used twice, another transposed", lambda: {"table": nn.Embedding(7, 4), "linear": nn.Linear(4, 4)}, lambda m, ids: F.linear(torch.tanh(m["linear"](m["linear"](m["table"](ids)))) @ m["linear"].weight, m["table"].weight), WORDS),
    Row("products", lambda: {"linear": nn.Linear(4, 4)}, products, (normal(2, 3, 4), normal(2, 3, 4))),
    Row("movement", linear(), moved, (normal(2, 6, 4),)),
    Row("reductions", linear(), reductions, (normal(2, 5, 4),)),
    Row("activations, far out", lambda: {"linear": nn.Linear(4, 4), "prelu": nn.PReLU(3)}, activations, (normal(2, 3, 4),)),
    Row("tensors made inside", lambda: {"linear": nn.Linear(4, 4), "table": nn.Embedding(5, 1)}, made_inside, (normal(2, 5, 4), below(7, 2, 5))),
    Row("forms of where and clamp", linear(), lambda m, x, y: [torch.where(y > 0, m["linear"](x), 0), torch.where(y > 0, 1.5, m["linear"](x)), torch.where(y[:1] > 0, m["linear"](x), y[..., :1]), m["linear"](x).clamp(y, y.abs() + 1), m["linear"](x).clamp_min(y), m["linear"](x).masked_fill(y < 0, m["linear"].bias[0]), torch.maximum(m["linear"](x), y)], (normal(3, 4), normal(3, 4))),
    Row("resized images", conv(), lambda m, x: [F.interpolate(m["conv"](x), scale_factor=2), F.interpolate(m["conv"](x), (5, 9)), F.interpolate(m["conv"](x), scale_factor=2, mode="bilinear"), F.interpolate(m["conv"](x), (4, 11), mode="bilinear", align_corners=True), F.interpolate(m["conv"](x), (3, 9), mode="bicubic")], IMAGE),
    Row("windows that do not divide", conv(), lambda m, x: [F.adaptive_avg_pool2d(m["conv"](x), (3, 4)), F.adaptive_max_pool2d(m["conv"](x), (3, 4)), F.adaptive_max_pool2d(m["conv"](x), (7, 4)), F.fold(F.unfold(m["conv"](x), 3, padding=1, stride=2).tanh(), (7, 6), 3, padding=1, stride=2)], IMAGE),
    Row("sampled images", conv(), lambda m, x: [F.grid_sample(m["conv"](x), m["conv"](x)[:, :2].permute(0, 2, 3, 1), padding_mode=mode, align_corners=corners) for mode, corners in (("zeros", False), ("border", True), ("reflection", False))], IMAGE),
    Row("layers in double precision", lambda: {"first": nn.Linear(4, 4), "linear": nn.Linear(4, 4).double()}, lambda m, x: m["linear"](m["first"](x).double()).float(), (normal(3, 4),)),
    Row("sampled volumes", conv(), lambda m, x: F.grid_sample(x[:, None], m["conv"](x)[:, 1:].permute(0, 2, 3, 1)[:, None], align_corners=False), (normal(1, 3, 3, 2),)),
    Row("losses inside the model", linear(3, 4), losses, (normal(6, 3), below(4, 6), normal(6, 4)), {"loss": "output"}),
    Row("recurrent networks", lambda: {"gru": nn.GRU(4, 3, batch_first=True), "lstm": nn.LSTM(4, 3, num_layers=2, bidirectional=True), "rnn": nn.RNN(4, 3)}, lambda m, x: [m["gru"](x)[0], m["gru"](input=x, hx=torch.ones(1, 2, 3))[1], m["lstm"](x)[0], m["lstm"](x)[1][1], m["rnn"](x)[0]], (normal(2, 3, 4),)),
    Row("complex numbers", linear(), spectra, (normal(3, 4),)),
    Row("autocast that is off", linear(), without_autocast, (normal(3, 4),)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_two_steps_equal_pytorch(row: Row) -> None:
    torch.manual_seed(0)
    model = Model(row.parts(), row.function).eval()

    def drawn(rng: np.random.Generator) -> list[np.ndarray]:
        return [draw(rng) for draw in row.inputs]

    example = tuple(torch.from_numpy(array) for array in drawn(np.random.default_rng(0)))
    exported = torch.export.export(model, example)
    options = {"loss": "mse"} | row.options

    def batches(rng: np.random.Generator) -> list[Any]:
        target = None if options["loss"] == "output" else rng.standard_normal(model(*example).shape).astype("float32")
        return [(drawn(rng), target) for _ in range(2)]

    assert_parity(exported, batches, scheme=pock.Scheme.full(), lr=0.01, **options)


# ---- what no program can do ------------------------------------------------------------------------------------------


def autocast(m: Parts, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return m["linear"](x)


def noisy(noise: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    return lambda m, x: m["linear"](x) + noise(x)


def written_through_detach(m: Parts, x: torch.Tensor) -> torch.Tensor:
    h = m["linear"](x)
    h.detach().mul_(2)
    return h


REFUSED = [
    Row("'linear' in place through detach", linear(), written_through_detach, (normal(3, 4),)),
    Row("embedding_renorm_.* changes 'parts.table.weight'", table(max_norm=1.0), lambda m, ids: m["linear"](m["table"](ids)), WORDS),
    Row("torch.autocast", linear(), autocast, (normal(3, 4),)),
    Row("randint", linear(), noisy(lambda x: torch.randint(0, 5, x.shape)), (normal(3, 4),)),
    Row("randperm", linear(), noisy(lambda x: x[torch.randperm(3)]), (normal(3, 4),)),
    Row("multinomial", linear(), noisy(lambda x: torch.multinomial(x.softmax(-1), 4)), (normal(3, 4),)),
    Row("rand_like|exponential", linear(), noisy(lambda x: F.gumbel_softmax(x)), (normal(3, 4),)),
    Row("rrelu", linear(), lambda m, x: F.rrelu(m["linear"](x), training=True), (normal(3, 4),)),
    Row("scale_grad_by_freq", table(scale_grad_by_freq=True), lambda m, ids: m["linear"](m["table"](ids)), WORDS),
]  # fmt: skip


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_is_refused_by_name(row: Row) -> None:
    model = Model(row.parts(), row.function)
    example = tuple(torch.from_numpy(draw(np.random.default_rng(0))) for draw in row.inputs)
    exported = torch.export.export(model, example)
    with pytest.raises(pock.PockError, match=f"(?i){row.name}"):
        pock.compile(exported, loss="mse", build=False)
