"""Small networks for tests of the user's side."""

from __future__ import annotations

import torch
from torch import nn


class Residual(nn.Module):
    """Two convolutions around a batch norm, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.bn(self.conv1(x)))))


class Small(nn.Module):
    """A stem, two residual blocks and a head, for images of 8 x 8."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Residual(8), Residual(8))
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class Tokens(nn.Module):
    """Words, added up with their places, and a head."""

    def __init__(self, words: int = 40, length: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, 8), nn.Embedding(16, 8)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, classes)
        self.register_buffer("order", torch.arange(length))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(self.words(words) + self.places(self.order))).mean(1))


def tokens(batch: int = 4) -> torch.export.ExportedProgram:
    """``Tokens`` with random weights, for sentences of six words."""
    torch.manual_seed(0)
    return torch.export.export(Tokens().eval(), (torch.zeros(batch, 6, dtype=torch.long),))


def small(batch: int | None = None, classes: int = 5) -> torch.export.ExportedProgram:
    """``Small`` with random weights; with a dynamic batch unless one is given."""
    torch.manual_seed(0)
    model = Small(classes).eval()
    dynamic = None if batch else ({0: torch.export.Dim("batch", min=1, max=64)},)
    return torch.export.export(model, (torch.randn(batch or 4, 3, 8, 8),), dynamic_shapes=dynamic)
