"""Kinds of layers and operators in a network of which half the channels, or biases alone, are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pock_tvm as pock
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of
from tests.numeric.parity import assert_parity


def half(exported: torch.export.ExportedProgram) -> pock.Scheme:
    """Biases, and half the channels of every weight that has some."""
    weights = structure_of(load_model(exported)).channels
    return pock.Scheme(pock.Scheme.bias_only(exported).rules | dict.fromkeys(weights, 0.5))


def joined(*values: torch.Tensor) -> torch.Tensor:
    return torch.cat([value.flatten(1) for value in values], 1)


class Volumes(nn.Module):
    """Convolutions of volumes, transposed ones, and pools."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(2, 4, 1), nn.Conv3d(4, 6, 3, (1, 2, 1), 1)
        self.norm, self.up = nn.BatchNorm3d(6), nn.ConvTranspose3d(6, 4, (3, 2, 2), (2, 1, 2), (1, 0, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.norm(self.second(torch.tanh(self.first(x)))))
        pools = F.max_pool3d(y, 2, 1), F.avg_pool3d(y, (2, 1, 3), 1), F.adaptive_avg_pool3d(y, (2, 1, 3))
        return joined(self.up(y), *pools)


class Images(nn.Module):
    """Operators of segmentation, detection and sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.out = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)
        self.where = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.first(x))  # [2, 4, 5, 4]
        z = self.out(self.up(y))
        grid = F.affine_grid(self.where(y.mean((2, 3))).view(-1, 2, 3), [2, 4, 3, 3], align_corners=False)
        return joined(
            F.interpolate(z, scale_factor=2), F.interpolate(z, (5, 9), mode="bilinear", align_corners=True),
            F.interpolate(z, (5, 9), mode="bilinear"), F.adaptive_avg_pool2d(z, (4, 3)), F.adaptive_max_pool2d(z, (4, 3)),
            F.grid_sample(y, grid, align_corners=False), F.pixel_shuffle(y, 2),
            F.fold(F.unfold(z, 3, padding=1).tanh(), z.shape[2:], 3, padding=1),
        )  # fmt: skip


class Sequences(nn.Module):
    """Recurrent layers, and operators that sort, accumulate and write by index."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bag = nn.Embedding(7, 6), nn.EmbeddingBag(7, 6, mode="mean")
        self.lstm, self.gru = nn.LSTM(6, 3, batch_first=True), nn.GRU(6, 3, batch_first=True)
        self.up, self.both = nn.ConvTranspose1d(6, 4, 3, 2), nn.Bilinear(3, 3, 2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)  # [3, 4, 6]
        y, (z, _) = self.lstm(x)[0], (self.gru(x)[0], None)
        a, rows = self.attention(x, x, x)[0], ids[:, :2] % 4
        put = y.index_put((torch.arange(3)[:, None], rows), z[:, :2], accumulate=True)
        added = y.scatter_add(1, rows[..., None].expand(3, 2, 3), z[:, :2])
        reduced = y.scatter_reduce(1, rows[..., None].expand(3, 2, 3), z[:, 2:], "amax")
        kept = y.masked_fill(ids[..., None] > 3, 0.5).index_add(1, torch.tensor([1, 1]), z[:, :2])
        part = torch.slice_scatter(y, z[:, :2], 1, 1, 3).masked_scatter(ids[..., None] > 4, a[..., :3])
        return joined(
            self.bag(ids), self.up(a.mT), self.both(y, z), x.max(1)[0], a.topk(2, 1)[0], a.sort(1)[0], a.cumsum(1), y.cumprod(1),
            y.prod(1), (a @ a.mT).diagonal(0, 1, 2), torch.atan2(y, z), torch.fmod(y * 9, 1.3), torch.cdist(y, z),
            y.gather(1, y.argsort(1)), put, added, reduced, kept, part, *torch.var_mean(a, 1), y[torch.arange(3), rows[:, 0]],
        )  # fmt: skip


class Narrow(nn.Module):
    """Layers of one input or output channel, whose transposed weights are mere reshapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.up = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1), nn.ConvTranspose2d(4, 1, 2)
        self.wide, self.value, self.row = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 1), nn.Linear(1, 3)
        self.signal = nn.Conv1d(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.first(x))
        value = self.value(y.mean((2, 3)))
        return joined(self.wide(self.one(y).tanh()), self.up(y), self.row(value.tanh()), value, self.signal(y[..., 0]))


NETWORKS = {
    "narrow": (Narrow, (2, 3, 5, 4)),
    "volumes": (Volumes, (2, 2, 3, 4, 5)),
    "images": (Images, (2, 3, 7, 6)),
    "sequences": (Sequences, (3, 4)),
}


@pytest.mark.parametrize("scheme", [half, pock.Scheme.bias_only])
@pytest.mark.parametrize("name", NETWORKS)
def test_two_steps_equal_pytorch(name: str, scheme: Callable[[Any], pock.Scheme]) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()

    def drawn(rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 7, shape) if name == "sequences" else rng.standard_normal(shape, "float32")

    example = torch.from_numpy(drawn(np.random.default_rng(0)))
    results = tuple(model(example).shape)

    def batches(rng: np.random.Generator) -> list[Any]:
        return [([drawn(rng)], rng.standard_normal(results, "float32")) for _ in range(2)]

    exported = torch.export.export(model, (example,))
    program = assert_parity(exported, batches, scheme=scheme(exported), loss="mse", lr=0.01)
    parts = [name for name, what in program.trained.items() if isinstance(what, dict)]
    assert len(parts) > 1 if scheme is half else not parts
