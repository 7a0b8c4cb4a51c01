"""Small networks that are trained on GPUs."""

import torch


class Pictures(torch.nn.Module):
    """Convolutions, a pool with its places, masks that are packed into bits."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = torch.nn.BatchNorm2d(8)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = torch.nn.Linear(8, 5)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(self.norm(self.first(x)), 2)
        x = torch.nn.functional.hardswish(self.depthwise(torch.nn.functional.relu6(x)))
        return self.last(x.mean((2, 3)))


class Words(torch.nn.Module):
    """A table that is read at int64 places, attention, norms."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(50, 16)
        self.block = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, activation="gelu")
        self.last = torch.nn.Linear(16, 5)

    def forward(self, x):
        return self.last(self.block(self.table(x)).mean(1))


NETWORKS = [(Pictures, lambda: torch.randn(4, 3, 17, 17)), (Words, lambda: torch.randint(0, 50, (4, 8)))]
"""Networks, and a batch of each."""
