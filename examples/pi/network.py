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


def main() -> None:
    """Write ``net.pt2``."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 24, 3, 2, 1), nn.ReLU(), block(24, 32, 2), block(32, 48, 1), block(48, 64, 2))
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
    torch.export.save(torch.export.export(model.eval(), (torch.zeros(BATCH, 1, 40, 32),)), "net.pt2")


if __name__ == "__main__":
    main()
