"""Programs that train on samples in their code, and what they print, for tests."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock

STEPS, RATE, TOLERANCE = 20, 0.01, 1e-4


class Spotter(nn.Module):
    """Keyword spotter: depthwise-separable convolutions over 49 frames of 10 coefficients."""

    def __init__(self, channels: int = 16, words: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, (10, 4), stride=2, padding=(5, 1))
        self.deep = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, groups=channels) for _ in range(3))
        self.wide = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.head = nn.Linear(channels, words)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for deep, wide in zip(self.deep, self.wide, strict=True):
            x = torch.relu(wide(torch.relu(deep(x))))
        return self.head(x.mean((2, 3)))


def noise(shape: tuple[int, ...], classes: int, batches: int) -> dict[str, np.ndarray]:
    rng, count = np.random.default_rng(0), batches * shape[0]
    return {"x": rng.standard_normal((count, *shape[1:])).astype("float32"), "y": rng.integers(0, classes, count)}


def assert_trains_alike(said: str, folder: Path, host: pock.Program, samples: dict[str, np.ndarray]) -> int:
    """Compare the losses that a board's program printed, and its state, with a trainer's; return the bytes of stack in
    use."""
    trainer = pock.Trainer(host, threads=1)
    batch = host.manifest["inputs"][0]["shape"][0]
    batches = len(samples["x"]) // batch
    expected = []
    for step in range(STEPS):
        rows = slice(step % batches * batch, (step % batches + 1) * batch)
        expected.append(trainer.step(samples["x"][rows], samples["y"][rows], lr=RATE))
    losses = [float(loss) for loss in re.findall(r"loss \d+ (\S+)", said)]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=TOLERANCE)
    assert expected[0] != pytest.approx(expected[-1], abs=1e-3)  # it does learn
    restored = pock.Trainer(host, threads=1)
    restored.restore(folder / "state.ckpt")
    assert restored.steps == STEPS
    for name, array in trainer.weights().items():
        np.testing.assert_allclose(restored.weights()[name], array, rtol=0, atol=TOLERANCE, err_msg=name)
    return int(re.findall(r"stack (\d+)", said)[0])
