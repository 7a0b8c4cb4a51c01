"""Rows in plain PyTorch, as people write them: classifiers of images and points, and what people put into them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.numeric.draws import normal, uniform

from .plain_dense import conv
from .row import Row


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(conv(1, 4), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 6))
        self.what = nn.Sequential(conv(1, 8), nn.AdaptiveMaxPool2d((3, 2)), nn.Flatten(), nn.Linear(48, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = self.where(x).view(-1, 2, 3) + torch.eye(2, 3)
        return self.what(F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False))


class Attended(nn.Module):
    """CBAM's and SPP's parts: largest and mean values of windows that do not divide the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = conv(3, 16, stride=2), nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))
        self.spatial, self.head = nn.Conv2d(2, 1, 7, padding=3), nn.Linear(16 * (1 + 4 + 9), 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        gate = self.squeeze(F.adaptive_avg_pool2d(y, 1).flatten(1)) + self.squeeze(
            F.adaptive_max_pool2d(y, 1).flatten(1)
        )
        y = y * gate.sigmoid()[:, :, None, None]
        y = y * self.spatial(torch.stack([y.mean(1), y.amax(1)], 1)).sigmoid()
        return self.head(torch.cat([F.adaptive_max_pool2d(y, size).flatten(1) for size in (1, 2, 3)], 1))


class Involution(nn.Module):
    """A kernel of its own for each pixel, over unfolded patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.kernel, self.head = conv(3, 8), nn.Conv2d(8, 2 * 9, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        batch, _, height, width = y.shape
        kernel = self.kernel(y).view(batch, 2, 1, 9, height, width)
        patches = F.unfold(y, 3, padding=1).view(batch, 2, 4, 9, height, width)
        return self.head((kernel * patches).sum(3).view(batch, 8, height, width).mean((2, 3)))


class TokensToToken(nn.Module):
    """T2T-ViT's soft split and a transposed one (Fold): attention between."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.join = nn.Unfold(5, stride=2, padding=2), nn.Fold((16, 16), 3, stride=2, padding=1)
        self.embed, self.back = nn.Linear(75, 16), nn.Linear(16, 9 * 4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(self.embed(self.split(x).transpose(1, 2)))
        return self.join(self.back(y).transpose(1, 2))


class MaskedAutoencoder(nn.Module):
    """ViT-MAE: a random part of the patches is seen, by noise that is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 16, 16))
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True)
        self.mask, self.decoder = nn.Parameter(torch.randn(1, 1, 16)), nn.Linear(16, 48)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.places
        shuffled = noise.argsort(1)
        restored = shuffled.argsort(1)
        seen = torch.gather(tokens, 1, shuffled[:, :6, None].expand(-1, -1, 16))
        seen = self.encoder(seen)
        all_of_them = torch.cat([seen, self.mask.expand(x.shape[0], 10, -1)], 1)
        all_of_them = torch.gather(all_of_them, 1, restored[:, :, None].expand(-1, -1, 16)) + self.places
        return self.decoder(all_of_them) * (restored >= 6)[..., None]


class Capsules(nn.Module):
    """Routing by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(1, 8, 5), nn.Conv2d(8, 16, 5, 2)
        self.weight = nn.Parameter(torch.randn(3, 64, 4, 6) * 0.1)

    @staticmethod
    def _squash(x: torch.Tensor) -> torch.Tensor:
        squares = (x * x).sum(-1, keepdim=True)
        return squares / (1 + squares) * x / (squares + 1e-8).sqrt()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self._squash(self.first(F.relu(self.stem(x))).reshape(x.shape[0], 64, 4))
        votes = torch.einsum("bni,cnij->bcnj", u, self.weight)
        logits = torch.zeros(x.shape[0], 3, 64)
        for turn in range(3):
            v = self._squash((logits.softmax(1)[..., None] * votes).sum(2))
            if turn < 2:
                logits = logits + (votes.detach() * v.detach()[:, :, None]).sum(-1)
        return v.norm(dim=-1)


class PointNet(nn.Module):
    """Points in any order; a small network turns them first."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU())
        self.matrix = nn.Linear(16, 9)
        self.points = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 24, 1))
        self.head = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrix = self.matrix(self.turn(x).max(2)[0]).view(-1, 3, 3) + torch.eye(3)
        return self.head(self.points(torch.bmm(matrix, x)).max(dim=2).values)


class EdgeConvolution(nn.Module):
    """DGCNN: each point sees its nearest neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.edges, self.head = (
            nn.Sequential(nn.Conv2d(6, 16, 1), nn.BatchNorm2d(16), nn.LeakyReLU(0.2)),
            nn.Linear(32, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        points = x.transpose(1, 2)
        nearest = torch.cdist(points, points).topk(4, largest=False).indices
        rows = torch.arange(x.shape[0])[:, None, None]
        neighbours = points[rows, nearest]  # [N, P, 4, 3]
        here = points[:, :, None].expand_as(neighbours)
        y = self.edges(torch.cat([here, neighbours - here], -1).permute(0, 3, 1, 2)).amax(-1)
        return self.head(torch.cat([y.amax(-1), y.mean(-1)], 1))


IMAGES = {"x": normal(2, 3, 16, 16)}
DIGITS = {"x": normal(2, 1, 16, 16)}
ROWS = [
    Row("plain/spatial transformer", SpatialTransformer, DIGITS),
    Row("plain/CBAM and spatial pyramid", Attended, {"x": normal(2, 3, 22, 26)}),
    Row("plain/involution", Involution, IMAGES),
    Row("plain/T2T-ViT, fold", TokensToToken, IMAGES),
    Row("plain/masked autoencoder", MaskedAutoencoder, IMAGES | {"noise": uniform(2, 16)}),
    Row("plain/capsules", Capsules, DIGITS),
    Row("plain/PointNet", PointNet, {"x": normal(2, 3, 20)}),
    Row("plain/DGCNN", EdgeConvolution, {"x": normal(2, 3, 12)}),
]  # fmt: skip
