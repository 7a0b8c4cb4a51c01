"""What PyTorch's operators become: the same numbers, shapes and types as PyTorch gives, or a refusal by name.

A row is an expression of some inputs. All rows of a table are one model, which is imported, run as it is, and compared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import nn
from tvm import relax

from pock_tvm.frontend import load_model
from pock_tvm.frontend.torch_sampling import sampled_volumes

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(1))
INTS = torch.tensor([[3, -4, 0, 9, -7], [5, 2, -1, 1, 8]])
SMALL = torch.tensor([[1, 2], [3, 5]], dtype=torch.int32)
TRUTH = torch.tensor([[True, False, True, False, True], [False, False, True, True, True]])
INPUTS = {"x": X, "y": Y, "n": INTS, "s": SMALL, "t": TRUTH}

Row = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]

ARITHMETIC: dict[str, Row] = {
    "add with a factor": lambda x, y, n, s, t: torch.add(x, y, alpha=0.25),
    "subtract with a factor": lambda x, y, n, s, t: torch.sub(x, y, alpha=5),
    "add a number with a factor": lambda x, y, n, s, t: torch.add(n, 2, alpha=3),
    "subtract from": lambda x, y, n, s, t: torch.rsub(x, y, alpha=2),
    "integers and a fraction": lambda x, y, n, s, t: n * 0.3 + n / 3 - 1 / (n.abs() + 1),
    "integers and an integer": lambda x, y, n, s, t: n * 3 - 7,
    "truth values in sums": lambda x, y, n, s, t: (n > 2) * 1.5 + (n > 0),
    "truth values added": lambda x, y, n, s, t: t + (n > 3),
    "truth values multiplied": lambda x, y, n, s, t: t * (n > 3),
    "two widths of integers": lambda x, y, n, s, t: s * n[:, :2],
    "a number that is a tensor": lambda x, y, n, s, t: n * torch.tensor(2.5) + torch.tensor(2),
    "floor division of integers": lambda x, y, n, s, t: torch.div(n, 3, rounding_mode="floor"),
    "division towards zero of integers": lambda x, y, n, s, t: torch.div(n, -3, rounding_mode="trunc"),
    "floor division": lambda x, y, n, s, t: x // 0.3,
    "remainder of integers": lambda x, y, n, s, t: n % 4 + n % -3,
    "remainder": lambda x, y, n, s, t: torch.remainder(x, 0.7) + torch.remainder(x, y),
    "remainder with the sign of x": lambda x, y, n, s, t: torch.fmod(x, 0.7) + torch.fmod(n, 3)[:, None, None],
    "remainder by an infinite number": lambda x, y, n, s, t: (torch.remainder(x, math.inf), torch.fmod(x, -math.inf)),
    "powers": lambda x, y, n, s, t: x**2 + x**3 + x.abs() ** 0.5 + 2**x + x.abs() ** y,
    "powers of integers": lambda x, y, n, s, t: n**2 + 2 ** n.abs(),
    "comparison of integers with a fraction": lambda x, y, n, s, t: (n < 2.5, n >= 1.5, t < 0.5),
    "comparison": lambda x, y, n, s, t: (x == y, x != y, x < y, x <= 0, n > n.flip(1), n.ne(3)),
    "logic of numbers": lambda x, y, n, s, t: (torch.logical_and(n, x[0, 0, :2]), torch.logical_not(x * 0.1)),
    "shifted": lambda x, y, n, s, t: (
        n << 3,
        n >> 1,
        s >> 1,
        (n.abs().to(torch.uint8) << 7) >> 2,
        torch.bitwise_left_shift(s, 2),
    ),
    "logic": lambda x, y, n, s, t: (t & (n > 0), t | (n > 0), t ^ (n > 0), ~t, n & 3, n | 3, n ^ 3, ~n),
    "bounds": lambda x, y, n, s, t: (x.clamp(-0.5, 0.5), x.clamp(min=0.1), x.clamp(max=0.1), n.clamp(-2, 3)),
    "bounds that are tensors": lambda x, y, n, s, t: torch.clamp(x, y - 1, y + 1),
    "the larger of two": lambda x, y, n, s, t: (torch.maximum(x, y), torch.minimum(n, n.flip(0)), torch.max(x, y)),
    "chosen": lambda x, y, n, s, t: torch.where(t, n * 0.5, n) + torch.where(n > 0, 1.0, 2.0),
    "filled": lambda x, y, n, s, t: x[0, 0, :2].masked_fill(t, -1.5),
    "rounded": lambda x, y, n, s, t: (x * 4).round() + x.ceil() + x.floor() + x.trunc() + n.floor().sum(),
    "rounded to places": lambda x, y, n, s, t: (x.round(decimals=2), (x * 9000).round(decimals=-3)),
    "the larger number": lambda x, y, n, s, t: (
        torch.fmax(x.log(), y),
        torch.fmin(x, y.log()),
        torch.fmax(n, n.flip(1)),
    ),
    "powers of two": lambda x, y, n, s, t: torch.exp2(x * 9) + torch.logaddexp2(x, y),
    "halves rounded to even": lambda x, y, n, s, t: (n / 2).round(),
    "blended": lambda x, y, n, s, t: torch.lerp(x, y, 0.3) + torch.addcmul(x, y, y, value=0.5),
    "divided and added": lambda x, y, n, s, t: torch.addcdiv(x, y, x.abs() + 1, value=-2),
}
FUNCTIONS: dict[str, Row] = {
    "functions": lambda x, y, n, s, t: x.exp() + x.sin() + x.cos() + x.tanh() + x.sigmoid() + x.erf() + x.abs().log(),
    "inverse functions": lambda x, y, n, s, t: (
        x.tanh().asin() + x.tanh().acos() + x.atan() + x.asinh() + x.tanh().atanh()
    ),
    "hyperbolic functions": lambda x, y, n, s, t: x.sinh() + x.cosh() + (x.abs() + 1).acosh() + x.tan(),
    "gamma function": lambda x, y, n, s, t: (x.abs().lgamma(), y.abs().digamma(), (n - 0.25).lgamma()),
    "roots": lambda x, y, n, s, t: x.abs().sqrt() + (x.abs() + 0.1).rsqrt() + (x + 9).reciprocal() + x.square(),
    "functions of integers": lambda x, y, n, s, t: n.exp() + n.sin() + n.abs().sqrt() + t.exp() + n.sigmoid(),
    "logarithms": lambda x, y, n, s, t: x.abs().log2() + x.abs().log10() + x.abs().log1p() + x.expm1(),
    "signs": lambda x, y, n, s, t: x.sign() * n.sign().sum() - x.neg() + x.abs(),
    "angles": lambda x, y, n, s, t: (torch.atan2(x, y), x.log().angle(), n.angle()),
    "relu and kin": lambda x, y, n, s, t: F.relu(x) + F.relu6(x * 5) + F.hardtanh(x, -0.5, 0.7) + F.leaky_relu(x, 0.2),
    "hard functions": lambda x, y, n, s, t: (
        F.hardsigmoid(x * 3) + F.hardswish(x * 3) + F.hardshrink(x) + F.softshrink(x)
    ),
    "gelu": lambda x, y, n, s, t: F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.mish(x),
    "elu": lambda x, y, n, s, t: F.elu(x * 100, 0.7) + F.selu(x * 100) + F.celu(x * 100, 1.3),
    "softplus": lambda x, y, n, s, t: (
        F.softplus(x * 30) + F.softplus(x, 2.0, 3.0) + F.logsigmoid(x * 30) + F.softsign(x)
    ),
    "threshold": lambda x, y, n, s, t: F.threshold(x, 0.1, -3.0) + F.tanhshrink(x),
    "gated": lambda x, y, n, s, t: F.glu(x[:, :2], 1),
    "slopes": lambda x, y, n, s, t: F.prelu(x, y[:, 0, 0]) + F.prelu(x, y[0, 0, :1]) + F.rrelu(x, 0.1, 0.4),
    "what is finite": lambda x, y, n, s, t: ((x / 0).isinf(), (x * math.nan).isnan(), x.isfinite(), n.isnan()),
    "softmax": lambda x, y, n, s, t: (
        F.softmax(x, 1) + F.log_softmax(x, -1) + F.softmin(x, 2) + torch.logsumexp(x, 1, True)
    ),
}
REDUCTIONS: dict[str, Row] = {
    "sums": lambda x, y, n, s, t: x.sum() + x.sum((1, 3), keepdim=True) + x.sum(-1, keepdim=True),
    "sums of integers": lambda x, y, n, s, t: (s.sum(), t.sum(1), n.sum(0), t.sum(dtype=torch.float32)),
    "means": lambda x, y, n, s, t: x.mean() + x.mean(1, keepdim=True) + n.mean(dtype=torch.float32),
    "extremes": lambda x, y, n, s, t: (x.amax(), x.amin((0, 2)), x.max(), n.min(), n.amax(0)),
    "extremes and where": lambda x, y, n, s, t: (*x.max(1), *x.min(-1, keepdim=True), *n.max(0)),
    "where": lambda x, y, n, s, t: (x.argmax(), x.argmax(2), x.argmin(-1, keepdim=True), n.argmax(1)),
    "products": lambda x, y, n, s, t: (x.prod(2), n.prod()),
    "running": lambda x, y, n, s, t: (*x.cummax(2), *x.cummin(-1), *n.clamp(0, 3).cummax(1), *torch.where(n > 4, math.nan, n * 1.0).cummin(1), *n[0, 0].cummax(0)),
    "running logarithms of sums": lambda x, y, n, s, t: (x.logcumsumexp(2), torch.where(n > 0, n * 30.0, -math.inf).logcumsumexp(1)),
    "softmax of masked": lambda x, y, n, s, t: torch.ops.aten._safe_softmax(x.masked_fill(x[:, :, :1] < 0, -math.inf), 2),
    "places in order": lambda x, y, n, s, t: (
        *(torch.searchsorted(x.sort(-1).values, x.flip(-1) if side else y.expand_as(x), right=side) for side in (False, True)),
        torch.bucketize(n, torch.tensor([-2, 0, 0, 3])), torch.bucketize(x / 0, torch.tensor([-1.0, 0.5]), right=True, out_int32=True),
        torch.searchsorted(torch.tensor([0.5, 1.0]), 1.0, side="right"), torch.bucketize(0.5, torch.tensor([0.5, 1.0])),
    ),
    "by order": lambda x, y, n, s, t: (*x.kthvalue(2, 1), *x.median(-1, keepdim=True), n.median()),
    "any and all": lambda x, y, n, s, t: (t.any(), t.all(1), (n > -9).all(), n.any(0), x.any(-1, keepdim=True)),
    "variances": lambda x, y, n, s, t: x.var() + x.var(1, keepdim=True) + x.var((0, 2), correction=0, keepdim=True),
    "deviations": lambda x, y, n, s, t: x.std() + x.std(-1, correction=2, keepdim=True) + torch.std_mean(x, 1, keepdim=True)[1],
    "norms": lambda x, y, n, s, t: x.norm() + x.norm(p=1, dim=1, keepdim=True) + torch.linalg.vector_norm(x, 3, (2, 3), True),
    "norms of sizes": lambda x, y, n, s, t: x.norm(p=math.inf, dim=-1) + torch.linalg.vector_norm(x, -math.inf, 3) + x.norm(p=0, dim=3),
    "normalised": lambda x, y, n, s, t: F.normalize(x, dim=1) + F.normalize(x, p=1.0, dim=3),
    "likeness": lambda x, y, n, s, t: F.cosine_similarity(x, y.expand_as(x), dim=1)[..., :1] + F.pairwise_distance(x, y)[:, :1].mT,
}  # fmt: skip
MOVEMENT: dict[str, Row] = {
    "shapes": lambda x, y, n, s, t: x.view(6, -1).unsqueeze(1).squeeze(1).reshape(2, 3, 35) + y[:, 0, :1],
    "flattened": lambda x, y, n, s, t: x.flatten(1).unflatten(1, (3, -1)).swapaxes(0, 2),
    "turned": lambda x, y, n, s, t: x.permute(3, 0, 2, 1).transpose(-1, 1) + x.mT.movedim(2, 0)[:, :, :, :1].sum(),
    "repeated": lambda x, y, n, s, t: (y.expand(2, 3, 7, 5), y.repeat(2, 1, 3), n.repeat_interleave(2, 1), y.tile(2)),
    "parts": lambda x, y, n, s, t: (x[:, 1], x[..., 1:-1:2], x[-1, :, ::3], x.narrow(2, 1, 3), x.select(-1, -2)),
    "taken apart": lambda x, y, n, s, t: (*x.split(3, 2), *x.chunk(2, 3), *x.split([1, 4], 3), *x.unbind(1)),
    "joined": lambda x, y, n, s, t: (torch.cat([x, y.expand(1, 3, 7, 5)]), torch.stack([n, n + 1], -1), torch.hstack([n, n])),
    "joined types": lambda x, y, n, s, t: torch.cat([n, n * 0.5, t], 1),
    "reversed": lambda x, y, n, s, t: x.flip(1, -1) + x.roll(2, 2) + x.roll((1, -3), (1, 3)) + x.roll(4),
    "padded": lambda x, y, n, s, t: (F.pad(x, (1, 2, -1, 3), value=0.5), F.pad(n, (2, 0))),
    "mirrored": lambda x, y, n, s, t: F.pad(x, (2, 1, 3, 1), "reflect").sum(1) + F.pad(x, (2, 1, 3, 1), "replicate").sum(1),
    "mirrored and cropped": lambda x, y, n, s, t: F.pad(x, (4, -3, -5, 3), "reflect").sum(1) + F.pad(x, (4, -3, -7, 5), "replicate").sum(1),
    "around": lambda x, y, n, s, t: F.pad(x, (2, 1, 0, 3), "circular"),
    "diagonals": lambda x, y, n, s, t: (x.diagonal(0, 2, 3), x.diagonal(-2, 3, 1), torch.tril(x, -1), torch.triu(x, 1)),
    "windows": lambda x, y, n, s, t: x.unfold(2, 3, 2),
    "by strides": lambda x, y, n, s, t: (x.as_strided((5, 2, 7), (1, 105, 5), 35), n.as_strided((4, 3), (2, 1)), x.as_strided((), (), 3)),
    "of a shape": lambda x, y, n, s, t: torch.zeros_like(x) + torch.ones_like(n).sum() + torch.full_like(x, 2) + x.new_ones(5),
    "positions": lambda x, y, n, s, t: torch.arange(x.shape[-1]) * x + torch.linspace(0, 1, 7)[:, None] + torch.eye(7, 5),
    "pixels": lambda x, y, n, s, t: F.pixel_shuffle(x[:, :1].expand(2, 4, 7, 5), 2) + F.pixel_unshuffle(x[:, :, :6, :4], 2).sum(),
}  # fmt: skip
INDEXING: dict[str, Row] = {
    "one list": lambda x, y, n, s, t: (x[:, [2, 0, -1]], x[..., torch.tensor([[1, -2], [0, 3]])]),
    "a pair": lambda x, y, n, s, t: x[:, :, [0, 2, -1], [1, 1, 4]] + x[:, [0, 1, 2], [1, 0, 3]][..., :3].sum(),
    "a pair apart": lambda x, y, n, s, t: (x[:, [0, 1], :, [2, 4]], x[[0, 1], :, [3, 3]], x[0, :, [1, 2]]),
    "pairs that broadcast": lambda x, y, n, s, t: x[:, :, torch.tensor([[1], [3]]), torch.tensor([0, 2, 4])],
    "by input": lambda x, y, n, s, t: (x[:, :, s], x[..., n[0].abs() % 5], y[s % 3, 0]),
    "selected": lambda x, y, n, s, t: (torch.index_select(x, 2, s[0]), torch.take(x, n + 7), n.take(s.long())),
    "gathered": lambda x, y, n, s, t: (x.gather(1, (n.abs() % 3)[:, None, None].expand(2, 2, 7, 5)), n.gather(1, s % 5)),
    "of a constant": lambda x, y, n, s, t: torch.tensor([[7, 2**40, -5]]).expand(2, 3).gather(1, n.abs() % 3) + n,
    "looked up": lambda x, y, n, s, t: F.embedding(n.abs(), x.reshape(-1, 21), padding_idx=3),
    "bags": lambda x, y, n, s, t: tuple(F.embedding_bag(n.abs(), x.reshape(-1, 21), mode=mode) for mode in ("sum", "mean", "max")),
    "uneven bags": lambda x, y, n, s, t: tuple(F.embedding_bag(n.abs()[0], x.reshape(-1, 21), s[0] * 0 + torch.tensor([0, 3]), mode=mode, padding_idx=4)
                                               for mode in ("sum", "mean", "max")),
    "written": lambda x, y, n, s, t: (torch.slice_scatter(x, y.expand(2, 3, 2, 5), 2, 1, 3), torch.select_scatter(n, n[0], 0, 1)),
    "written with steps": lambda x, y, n, s, t: (torch.slice_scatter(x, y.expand(2, 3, 2, 5), 2, 1, 5, 2), torch.diagonal_scatter(x, x[:, :, 0], 0, 2, 3), torch.diagonal_scatter(n, n[0, :2], -1, 1, 0)),
    "put": lambda x, y, n, s, t: (n.index_put((s[0] - 1,), n[:1] * 2), torch.ops.aten.index_put(x, [None, s[0] % 3, s[:, 1]], y[0, 0, 0]), torch.ops.aten.index_put(x, [s[0] % 2, None, s[1]], y[0]),
                                  n.index_put((s % 2, s % 5), s.long(), accumulate=True), y.index_put((t[:, :3].any(0),), y[0]), x.index_fill(3, s[1].long() % 5, 2.0), y.index_add(0, s[0], y[:2], alpha=3)),
    "scattered": lambda x, y, n, s, t: (n.scatter(1, s.long() % 5, n), n.scatter(0, s.long() % 2, 7), x.scatter_add(2, (n.abs() % 7)[:, None, None].expand(2, 3, 1, 5), x), x.masked_scatter(t[:, :, None, None].expand(2, 5, 7, 5)[:, :3], y * x)),
    "reduced at places": lambda x, y, n, s, t: tuple(n.float().scatter_reduce(1, s.long() % 3, n * 0.3, how, include_self=own) for how in ("sum", "prod", "mean", "amax", "amin") for own in (True, False)),
    "reduced, one number": lambda x, y, n, s, t: x[0, 0, 0, 0].index_reduce(0, n[0, :1] * 0, y[0, 0, 0], "mean"),
    "read at clamped indices": lambda x, y, n, s, t: torch.ops.aten._unsafe_masked_index(x[0, 0], n > 0, [n, n + 1], -2.0),
    "one hot": lambda x, y, n, s, t: F.one_hot(s.long(), 6) * 0.5,
}  # fmt: skip
LAYERS: dict[str, Row] = {
    "products": lambda x, y, n, s, t: x @ x.mT + torch.einsum("nchw,cow->nch", x, y)[..., None],
    "sums of products": lambda x, y, n, s, t: torch.addmm(y[:, 0, :1], x[0, :, 0], x[1, 0].T[:, :4], beta=0.5, alpha=2)
    + torch.baddbmm(x[0, :, :4, :1], x[0, :, :4], y.mT, beta=0).sum(),
    "vectors": lambda x, y, n, s, t: (x[0, 0] @ y[0, 0], y[0, 0] @ y[1, 0], torch.outer(y[0, 0], y[1, 0])),
    "bilinear": lambda x, y, n, s, t: F.bilinear(x, x[..., :3], x[0].transpose(1, 2)[:, :, :3].contiguous(), y[:, 0, 0]),
    "products summed over a batch": lambda x, y, n, s, t: torch.addbmm(x[0, 0, 0, 0], x[0], x[1].mT, beta=0.5, alpha=2),
    "distances": lambda x, y, n, s, t: (torch.cdist(x, x.flip(2)[:, :, :4]), torch.cdist(x[0], x[1], p=1.0), F.pdist(x[0, 0], math.inf)),
    "linear": lambda x, y, n, s, t: F.linear(x, y[:, 0]) + F.linear(x, y[:1, 0], y[1, 0, :1]),
    "convolutions": lambda x, y, n, s, t: F.conv2d(x, x[:, :, :3, :3], y[:2, 0, 0], padding=1, stride=(2, 1))
    + F.conv2d(x, x[:, :, :3, :3], padding="same", dilation=2)[:, :, ::2],
    "of one image": lambda x, y, n, s, t: F.conv2d(x[0], x[:, :, :3, :3]) + F.max_pool2d(x[0], 3, 1)[:2] + F.avg_pool2d(x[0], 3, 1)[:2],
    "of rows": lambda x, y, n, s, t: F.conv1d(x[0], x[0, :, :, :3].transpose(0, 1)[:3, :1].repeat(1, 7, 1), groups=1),
    "transposed": lambda x, y, n, s, t: F.conv_transpose2d(x, x.transpose(0, 1)[..., :3], stride=2, padding=1, output_padding=1),
    "transposed with much padding of the output": lambda x, y, n, s, t: (F.conv_transpose2d(x, x.transpose(0, 1)[..., :3], None, (1, 2), (0, 3), (2, 3), dilation=(3, 4)),
        F.conv_transpose1d(x[0], x[0].transpose(0, 1)[:, :, :4].contiguous(), None, 1, 1, 2, dilation=3), F.conv_transpose3d(x[:, :, None], x.transpose(0, 1)[..., None, :2], None, (2, 1, 3), 1, (2, 2, 1), dilation=(3, 3, 2))),
    "transposed rows": lambda x, y, n, s, t: F.conv_transpose1d(x[0], x[0].transpose(0, 1)[:, :, :4].contiguous(), stride=3, output_padding=2),
    "means of windows": lambda x, y, n, s, t: (F.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, (3, 2), ceil_mode=True, count_include_pad=False, padding=1),
                                              F.avg_pool2d(x, 2, 3, 1, ceil_mode=True), F.avg_pool2d(x, 3, 2, divisor_override=5),
                                              F.avg_pool2d(x, (200, 3), ceil_mode=True, padding=1, divisor_override=7), F.avg_pool2d(x, 400, ceil_mode=True, padding=2, count_include_pad=False)),
    "largest of windows": lambda x, y, n, s, t: (F.max_pool2d(x, 3, 2, 1, 2), F.max_pool2d(x, 3, 4, ceil_mode=True), F.max_pool2d(x, 1, 2, ceil_mode=True), F.max_pool2d(x, 400, ceil_mode=True)),
    "of rows, windows": lambda x, y, n, s, t: (F.avg_pool1d(x[0], 3, 2, 1, True), F.max_pool1d(x[0], 3, 2, 1, ceil_mode=True)),
    "adaptive": lambda x, y, n, s, t: (F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool2d(x, (7, 1)), F.adaptive_avg_pool1d(x[0], 5), F.adaptive_avg_pool2d(x, (3, 2))),
    "layer norm": lambda x, y, n, s, t: F.layer_norm(x, (5,), eps=1e-3) + F.layer_norm(x, (7, 5), x[0, 0]) + F.rms_norm(x, (5,), y[0, 0]),
    "norms with their statistics": lambda x, y, n, s, t: (*torch.native_layer_norm(x, (7, 5), x[0, 0], None, 1e-3), *torch.native_group_norm(x, None, y[:, 0, 0].contiguous(), 2, 3, 35, 3, 1e-3)),
    "batch norm of PyTorch's own": lambda x, y, n, s, t: torch.native_batch_norm(x, y[:, 0, 0], None, y[:, 0, 1], y[:, 0, 2].abs(), False, 0.1, 1e-3)[0],
    "batch norm": lambda x, y, n, s, t: F.batch_norm(x, y[:, 0, 0], y[:, 0, 1].abs(), y[:, 0, 2], eps=1e-3) + F.batch_norm(x, None, None, training=True),
    "group norm": lambda x, y, n, s, t: F.group_norm(x, 3, eps=1e-3) + F.group_norm(x[:, :, 0, 0], 1, y[:, 0, 0])[:, :, None, None] + F.instance_norm(x, eps=1e-2),
    "attention": lambda x, y, n, s, t: F.scaled_dot_product_attention(x, x, x, is_causal=True) + F.scaled_dot_product_attention(x, x, x, scale=0.0),
    "attention masked": lambda x, y, n, s, t: F.scaled_dot_product_attention(x[..., :2, :], x[..., :5, :], x[..., :5, :], t)
    + F.scaled_dot_product_attention(x[..., :2, :], x[..., :5, :], x[..., :5, :], torch.where(t & (n < 0), 0.0, -math.inf)),
    "resized": lambda x, y, n, s, t: F.interpolate(x, scale_factor=2.0) + F.interpolate(x, (14, 10), mode="bilinear", align_corners=True),
    "resized by halves": lambda x, y, n, s, t: F.interpolate(x, (5, 9), mode="bilinear") + F.interpolate(x, (5, 9), mode="bicubic"),
    "resized by kind": lambda x, y, n, s, t: (F.interpolate(x, scale_factor=1.7, mode="bilinear"), F.interpolate(x, (4, 3), mode="bilinear", antialias=True), F.interpolate(x, (9, 4), mode="nearest-exact"),
        F.interpolate(x[0], scale_factor=2.3, mode="linear"), F.interpolate(x[:, :, None], (2, 9, 4), mode="trilinear", align_corners=True)),
    "largest of unequal windows": lambda x, y, n, s, t: (F.adaptive_max_pool2d(x, (3, 2)), F.adaptive_max_pool2d(x, 1), F.adaptive_max_pool1d(x[0], 3), F.adaptive_max_pool2d(x[0], (7, 2))),
    "where the largest are": lambda x, y, n, s, t: (*F.max_pool2d(x, (3, 2), 2, 1, return_indices=True), *F.max_pool2d(x[0], 2, 1, 0, 2, return_indices=True), *F.max_pool1d(x[0], 2, 3, 1, return_indices=True),
                                                   *F.adaptive_max_pool2d(x, (3, 2), return_indices=True), *F.adaptive_max_pool1d(x[0], 1, return_indices=True),
                                                   *F.max_pool3d(x, (2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 2, 1), return_indices=True), *F.max_pool3d(x[:, None], (2, 3, 2), return_indices=True), *F.max_pool3d(torch.round(x[None]), 2, 1, ceil_mode=True, return_indices=True),
                                                   *F.adaptive_max_pool3d(x[:, None], 1, return_indices=True)),
    "patches": lambda x, y, n, s, t: (F.unfold(x, (3, 2), padding=1, stride=2), F.fold(F.unfold(x, (3, 2), dilation=2, padding=1), (7, 5), (3, 2), dilation=2, padding=1)),
    "sampled": lambda x, y, n, s, t: F.grid_sample(x, F.affine_grid(x[:, :2, 0, :3], [2, 3, 4, 6], align_corners=False), align_corners=False),
}  # fmt: skip


class Rows(nn.Module):
    def __init__(self, rows: dict[str, Row]) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, *inputs: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        results = [row(*inputs) for row in self.rows.values()]
        return [result if isinstance(result, tuple) else (result,) for result in results]


@pytest.mark.parametrize("rows", [ARITHMETIC, FUNCTIONS, REDUCTIONS, MOVEMENT, INDEXING, LAYERS])
def test_operators_give_what_pytorch_gives(rows: dict[str, Row]) -> None:
    model, inputs = Rows(rows).eval(), list(INPUTS.values())
    wanted = model(*inputs)
    imported = load_model(torch.export.export(model, tuple(inputs)))
    machine = relax.VirtualMachine(tvm.compile(relax.transform.LegalizeOps()(imported.module), "llvm"), tvm.cpu())
    results = iter(machine["main"](*[tvm.runtime.tensor(value.numpy()) for value in inputs]))
    wrong = []
    for name, row in zip(rows, wanted, strict=True):
        for want in row:
            got, want = next(results).numpy(), want.numpy()
            same = got.shape == want.shape and got.dtype == want.dtype
            if not same or not np.allclose(got, want, rtol=2e-4, atol=2e-5, equal_nan=True):
                wrong.append((name, got.dtype, got.shape, want.dtype, want.shape))
    assert not wrong


@pytest.mark.parametrize("mode", itertools.product((0, 1), (0, 1, 2), (False, True)))
def test_volumes_are_sampled_as_in_pytorch(mode: tuple[int, int, bool]) -> None:
    """By each interpolation and padding, with corners aligned or not: values and gradients."""
    random = torch.Generator().manual_seed(0)
    volumes = torch.randn(2, 3, 4, 5, 6, generator=random, requires_grad=True)
    grid = 1.2 * torch.randn(2, 3, 2, 4, 3, generator=random)
    grid[0, 0] = grid[0, 0].sign()  # corners and middles of borders
    grid.requires_grad_()
    wanted, found = torch.ops.aten.grid_sampler_3d(volumes, grid, *mode), sampled_volumes(volumes, grid, *mode)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    weights = torch.randn(wanted.shape, generator=random)
    operands = (volumes, grid) if mode[0] == 0 else (volumes,)  # to the nearest place there is no gradient
    grads = [torch.autograd.grad((each * weights).sum(), operands) for each in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
