"""Rows in plain PyTorch, as people write them: segmentation, detection, optical flow."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.numeric.draws import normal, uniform

from .row import Row


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    options = {"padding": kernel // 2} | options
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """U-Net with a way up by interpolation, or by transposed convolutions."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.down = nn.ModuleList([self._two(3, 8), self._two(8, 16), self._two(16, 24)])
        self.turn = nn.ModuleList([nn.ConvTranspose2d(24, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.narrow = nn.ModuleList([nn.Conv2d(24, 16, 1), nn.Conv2d(16, 8, 1)])
        self.up = nn.ModuleList([self._two(32, 16), self._two(16, 8)])
        self.head = nn.Conv2d(8, 4, 1)

    @staticmethod
    def _two(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv(inputs, outputs), conv(outputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for level, (block, skip) in enumerate(zip(self.up, reversed(kept[:-1]), strict=True)):
            if self.mode == "transposed":
                x = self.turn[level](x)
            else:
                corners = {} if self.mode == "nearest" else {"align_corners": level == 0}
                x = self.narrow[level](F.interpolate(x, scale_factor=2, mode=self.mode, **corners))
            pads = skip.shape[-1] - x.shape[-1], skip.shape[-2] - x.shape[-2]
            x = block(torch.cat([skip, F.pad(x, (0, pads[0], 0, pads[1]))], 1))
        return self.head(x)


class DiffusionUNet(nn.Module):
    """A denoiser: group norm, attention over pixels, the step of time as sines."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 16))
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 16, 3, 2, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up = nn.Conv2d(16, 16, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(4, 32), nn.SiLU(), nn.Conv2d(32, 3, 3, padding=1))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        angles = t[:, None] * torch.exp(-math.log(1000) * torch.arange(8) / 8)
        shift = self.time(torch.cat([angles.sin(), angles.cos()], -1))[:, :, None, None]
        skip = self.stem(x)
        y = F.silu(self.norm(self.down(skip) + shift))
        rows = y.flatten(2).transpose(1, 2)
        y = y + self.attention(rows, rows, rows, need_weights=False)[0].transpose(1, 2).reshape(y.shape)
        y = self.up(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        return self.out(torch.cat([y, skip], 1))


class SegNet(nn.Module):
    """Maxima go back to where they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = conv(3, 8), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, places = F.max_pool2d(self.encoder(x), 2, return_indices=True)
        return self.decoder(F.max_unpool2d(torch.tanh(y), places, 2))


class PyramidPooling(nn.Module):
    """PSPNet's and DeepLab's ends: pools of several sizes, dilated convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, stride=2), conv(8, 16))
        self.pools = nn.ModuleList([nn.Sequential(nn.AdaptiveAvgPool2d(n), nn.Conv2d(16, 4, 1)) for n in (1, 2, 3, 6)])
        self.rates = nn.ModuleList([conv(16, 4, dilation=n, padding=n) for n in (1, 2, 4)])
        self.low, self.head = conv(3, 4, 1), nn.Conv2d(48, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        size = y.shape[-2:]
        pooled = [F.interpolate(pool(y), size, mode="bilinear", align_corners=False) for pool in self.pools]
        y = torch.cat([y, *pooled, *(rate(y) for rate in self.rates)], 1)
        y = F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=True)
        return self.head(torch.cat([y[:, :44], self.low(x)], 1))


class HighResolution(nn.Module):
    """HRNet: branches of several resolutions that exchange what they see."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.split = conv(3, 8), conv(8, 12, stride=2)
        self.high, self.low = conv(8, 8), conv(12, 12)
        self.up = nn.Sequential(nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8), nn.Upsample(scale_factor=2, mode="nearest"))
        self.down, self.head = conv(8, 12, stride=2), nn.Conv2d(20, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = self.stem(x)
        low = self.low(self.split(high))
        high, low = F.relu(self.high(high) + self.up(low)), F.relu(self.down(self.high(high)) + low)
        heat = self.head(torch.cat([high, F.interpolate(low, size=high.shape[-2:], mode="bilinear")], 1))
        shares = heat.flatten(2).softmax(-1).unflatten(-1, heat.shape[-2:])  # where each heat map has its centre
        across, down = (torch.linspace(0, 1, heat.shape[axis]) for axis in (-1, -2))
        return torch.stack([(shares.sum(-2) * across).sum(-1), (shares.sum(-1) * down).sum(-1)], -1)


class Detr(nn.Module):
    """Object queries on a convolutional backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 8, stride=2), conv(8, 16, stride=2), nn.Conv2d(16, 16, 1))
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.rows, self.columns = nn.Parameter(torch.rand(8, 8)), nn.Parameter(torch.rand(8, 8))
        self.queries = nn.Parameter(torch.rand(5, 16))
        self.classes, self.boxes = nn.Linear(16, 4), nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.backbone(x)
        height, width = y.shape[-2:]
        columns = self.columns[:width].unsqueeze(0).repeat(height, 1, 1)
        places = torch.cat([columns, self.rows[:height].unsqueeze(1).repeat(1, width, 1)], -1).flatten(0, 1)
        queries = self.queries.unsqueeze(0).repeat(x.shape[0], 1, 1)
        y = self.transformer(places + 0.1 * y.flatten(2).transpose(1, 2), queries)
        return torch.cat([self.classes(y), self.boxes(y).sigmoid()], -1)


class Yolo(nn.Module):
    """A one-stage detector: cross-stage parts, pyramid of pools, boxes decoded on a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, stride=2), conv(8, 16, stride=2))
        self.left, self.right, self.block = conv(16, 8, 1), conv(16, 8, 1), conv(8, 8)
        self.pool, self.join = nn.MaxPool2d(5, 1, 2), conv(48, 16, 1)
        self.head = nn.Conv2d(16, 2 * 7, 1)
        self.register_buffer("anchors", torch.tensor([[1.0, 2.0], [3.0, 1.5]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        left = self.left(y)
        y = torch.cat([left + self.block(left), self.right(y)], 1)
        once = self.pool(y)
        y = self.head(self.join(torch.cat([y, once, self.pool(once)], 1)))
        batch, _, height, width = y.shape
        y = y.view(batch, 2, 7, height, width).permute(0, 1, 3, 4, 2)
        down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        xy = (y[..., :2].sigmoid() * 2 - 0.5 + torch.stack([across, down], -1)) / width
        wh = (y[..., 2:4].sigmoid() * 2) ** 2 * self.anchors[:, None, None]
        return torch.cat([xy, wh, y[..., 4:].sigmoid()], -1).flatten(1, 3)


class Flow(nn.Module):
    """Optical flow: correlation of two images' features, and one of them warped by it."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.flow = nn.Sequential(conv(3, 8, stride=2), conv(8, 8)), nn.Conv2d(25 + 8, 2, 3, padding=1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a, b = self.features(x), self.features(y)
        around = F.unfold(b, 5, padding=2).view(b.shape[0], b.shape[1], 25, *b.shape[-2:])
        flow = self.flow(torch.cat([(a[:, :, None] * around).mean(1), a], 1)).permute(0, 2, 3, 1)
        down, across = torch.meshgrid(
            torch.linspace(-1, 1, a.shape[-2]), torch.linspace(-1, 1, a.shape[-1]), indexing="ij"
        )
        grid = torch.stack([across, down], -1) + flow.tanh()
        return torch.cat([F.grid_sample(b, grid, padding_mode="border", align_corners=True), a], 1)


IMAGES = {"x": normal(2, 3, 16, 16)}
ROWS = [
    Row("plain/U-Net, bilinear", lambda: UNet("bilinear"), {"x": normal(2, 3, 22, 18)}),
    Row("plain/U-Net, nearest", lambda: UNet("nearest"), {"x": normal(2, 3, 22, 18)}),
    Row("plain/U-Net, transposed", lambda: UNet("transposed"), {"x": normal(2, 3, 22, 18)}),
    Row("plain/U-Net of a diffusion model", DiffusionUNet, {"x": normal(2, 3, 8, 8), "t": uniform(2)}),
    Row("plain/SegNet", SegNet, IMAGES),
    Row("plain/pyramid pooling and dilation", PyramidPooling, {"x": normal(2, 3, 20, 18)}),
    Row("plain/HRNet", HighResolution, IMAGES),
    Row("plain/DETR", Detr, IMAGES),
    Row("plain/YOLO", Yolo, IMAGES),
    Row("plain/optical flow", Flow, {"x": normal(2, 3, 16, 12), "y": normal(2, 3, 16, 12)}),
]  # fmt: skip
