"""Makes the network of this example: words in a second of sound, from 40 x 32 log-mel features.

It has random weights: put your own trained network in its place.
"""

import torch
from torch import nn

BATCH, CLASSES = 8, 12


def block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A depthwise-separable convolution."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 1), nn.ReLU()
    )


class Words(nn.Module):
    """A small keyword network: the name of its argument is that of the array in the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, 2, 1), nn.ReLU())
        self.blocks = nn.Sequential(block(24, 32, 2), block(32, 48, 1), block(48, 64, 2))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Scores of the words, of features of shape [batch, 1, 40, 32]."""
        return self.head(self.blocks(self.stem(features)).mean((2, 3)))


def main() -> None:
    """Write ``net.pt2``."""
    torch.manual_seed(0)
    torch.export.save(torch.export.export(Words().eval(), (torch.zeros(BATCH, 1, 40, 32),)), "net.pt2")


if __name__ == "__main__":
    main()
