"""Rows in plain PyTorch, as people write them: time series, tables, recommendations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.numeric.draws import below, normal

from .row import Row


class DLinear(nn.Module):
    """Trend and season, each by a linear layer; normalised by the last value."""

    def __init__(self) -> None:
        super().__init__()
        self.trend, self.season = nn.Linear(24, 6), nn.Linear(24, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = x[:, -1:].detach()
        x = x - last
        ends = torch.cat([x[:, :1].repeat(1, 3, 1), x, x[:, -1:].repeat(1, 3, 1)], 1)
        trend = F.avg_pool1d(ends.transpose(1, 2), 7, 1)
        return (self.trend(trend) + self.season(x.transpose(1, 2) - trend)).transpose(1, 2) + last


class NBeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)) for _ in range(2)])
        self.register_buffer(
            "season", torch.stack([torch.sin(2 * math.pi * n * torch.arange(30) / 30) for n in range(1, 6)])
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        forecast = 0.0
        for block in self.blocks:
            theta = block(x)
            x = x - theta[:, :5] @ self.season[:, :24]
            forecast = forecast + theta[:, 5:] @ self.season[:, 24:]
        return forecast


class PatchTransformer(nn.Module):
    """Patches of each channel alone, reversible normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(8, 16), nn.Parameter(torch.randn(1, 5, 16))
        self.encoder = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, activation="gelu")
        self.head, self.scale = nn.Linear(80, 6), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, deviation = x.mean(1, keepdim=True), torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
        x = (x - mean) / deviation * self.scale
        patches = x.transpose(1, 2).unfold(-1, 8, 4)  # [B, 3, 5, 8]
        y = self.encoder(self.embed(patches).flatten(0, 1) + self.places)
        y = self.head(y.flatten(1)).view(x.shape[0], 3, 6).transpose(1, 2)
        return y / self.scale * deviation + mean


class DeepAR(nn.Module):
    """An LSTM that gives a distribution, and the likelihood as its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        place, scale, freedom = self.head(self.lstm(x)[0]).unbind(-1)
        student = torch.distributions.StudentT(2 + F.softplus(freedom), place, F.softplus(scale), validate_args=False)
        normal = torch.distributions.Normal(place, F.softplus(scale) + 1e-3, validate_args=False)
        return -student.log_prob(y).mean() - 0.1 * normal.log_prob(y).mean()


class Fusion(nn.Module):
    """Temporal fusion: gated residual networks and a selection of variables."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.ModuleList([nn.Linear(1, 8) for _ in range(4)])
        self.choice, self.lstm = nn.Linear(32, 4), nn.LSTM(8, 8, batch_first=True)
        self.first, self.second, self.gate, self.norm = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 16),
            nn.LayerNorm(8),
        )
        self.quantiles = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = torch.stack([layer(x[..., [index]]) for index, layer in enumerate(self.inputs)], -1)  # [B, T, 8, 4]
        y = (values * self.choice(values.flatten(2)).softmax(-1).unsqueeze(2)).sum(-1)
        y = self.lstm(y)[0]
        y = self.norm(y + F.glu(self.gate(self.second(F.elu(self.first(y)))), -1))
        return self.quantiles(y[:, -4:])


class DeepFM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables, self.first = nn.ModuleList([nn.Embedding(20, 6) for _ in range(4)]), nn.Embedding(80, 1)
        self.deep = nn.Sequential(nn.Linear(24, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        fields = torch.stack([table(ids[:, index]) for index, table in enumerate(self.tables)], 1)
        pairs = 0.5 * (fields.sum(1) ** 2 - (fields**2).sum(1)).sum(1, keepdim=True)
        wide = self.first(ids + torch.arange(0, 80, 20)).sum(1)
        return torch.sigmoid(wide + pairs + self.deep(fields.flatten(1))).squeeze(1)


class DLRM(nn.Module):
    """Bags of embeddings, and the products of all pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList([nn.EmbeddingBag(20, 8, mode="sum") for _ in range(2)])
        self.bottom, self.top = (
            nn.Sequential(nn.Linear(5, 8), nn.ReLU()),
            nn.Sequential(nn.Linear(11, 8), nn.ReLU(), nn.Linear(8, 1)),
        )

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = self.bottom(dense)
        fields = torch.stack([x, *(bag(ids[:, index]) for index, bag in enumerate(self.bags))], 1)
        products = fields @ fields.transpose(1, 2)
        rows, columns = torch.tril_indices(3, 3, -1)
        return self.top(torch.cat([x, products[:, rows, columns]], 1))


class TabNet(nn.Module):
    """Steps that each look at some features, by a sparse softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.shared = nn.BatchNorm1d(8), nn.Linear(8, 16)
        self.masks, self.steps = (
            nn.ModuleList([nn.Linear(4, 8) for _ in range(2)]),
            nn.ModuleList([nn.Linear(8, 16) for _ in range(2)]),
        )
        self.head = nn.Linear(4, 3)

    @staticmethod
    def _sparsemax(x: torch.Tensor) -> torch.Tensor:
        ordered = x.sort(-1, descending=True).values
        counts = torch.arange(1, x.shape[-1] + 1)
        sums = ordered.cumsum(-1) - 1
        inside = ordered * counts > sums
        size = inside.sum(-1, keepdim=True)
        return (x - sums.gather(-1, size - 1) / size).clamp(min=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, prior, total = self.norm(x), torch.ones_like(x), 0.0
        state = F.glu(self.shared(x), -1)[:, 4:]
        for mask, step in zip(self.masks, self.steps, strict=True):
            chosen = self._sparsemax(mask(state) * prior)
            prior = prior * (1.5 - chosen)
            y = F.glu(step(x * chosen), -1)
            total, state = total + F.relu(y[:, :4]), y[:, 4:]
        return self.head(total)


class FeatureTokens(nn.Module):
    """FT-Transformer: each column a token."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 16)), nn.Parameter(torch.randn(6, 16))
        self.kinds, self.token = nn.Embedding(10, 16), nn.Parameter(torch.randn(1, 1, 16))
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True)
        self.head = nn.Sequential(nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        columns = x.unsqueeze(-1) * self.weight + self.bias
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), columns, self.kinds(kinds)], 1)
        return self.head(self.layer(tokens)[:, 0])


class TwoTowers(nn.Module):
    """Contrastive learning: each row's partner among all."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8)), nn.Linear(5, 8)
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a, b = F.normalize(self.left(x), dim=-1), F.normalize(self.right(y), dim=-1)
        logits, labels = a @ b.T * self.temperature.exp(), torch.arange(x.shape[0])
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


ROWS = [
    Row("plain/DLinear", DLinear, {"x": normal(2, 24, 3)}),
    Row("plain/N-BEATS", NBeats, {"x": normal(2, 24)}),
    Row("plain/PatchTST", PatchTransformer, {"x": normal(2, 24, 3)}),
    Row("plain/DeepAR", DeepAR, {"x": normal(2, 6, 2), "y": normal(2, 6)}, loss="output"),
    Row("plain/temporal fusion", Fusion, {"x": normal(2, 6, 4)}),
    Row("plain/DeepFM", DeepFM, {"ids": below(20, 3, 4)}),
    Row("plain/DLRM", DLRM, {"dense": normal(3, 5), "ids": below(20, 3, 2, 4)}),
    Row("plain/TabNet", TabNet, {"x": normal(3, 8)}),
    Row("plain/FT-Transformer", FeatureTokens, {"x": normal(3, 6), "kinds": below(10, 3, 2)}),
    Row("plain/two towers", TwoTowers, {"x": normal(4, 6), "y": normal(4, 5)}, loss="output"),
]  # fmt: skip
