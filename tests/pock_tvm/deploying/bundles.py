"""Programs and their bundles, for tests."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

import pock_tvm as pock

from ..networks import Small, Tokens

RATE = float(np.float32(0.01))


class OwnLoss(nn.Module):
    """A network that returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return (self.layer(x) - x).square().mean()


class Language(nn.Module):
    """A language model without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, words):
        return self.head(torch.tanh(self.words(words)))


class Dropping(nn.Module):
    """A network that drops values in training, and draws noise in inference, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop, self.head = nn.Linear(12, 30), nn.Dropout(0.4), nn.Linear(30, 5)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.layer(x + 0.1 * torch.randn_like(x)))))


def mlp():
    return nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 5))


IMAGE, FEATURES, WORDS = torch.zeros(8, 3, 8, 8), torch.zeros(8, 12), torch.zeros(8, 6, dtype=torch.int64)
CASES = {
    "momentum, dampening, accumulated": (
        mlp, FEATURES, {"optimizer": pock.SGD(momentum=0.9, dampening=0.1, weight_decay=1e-3), "accumulate": 3}
    ),
    "Adam, clipped, class weights": (
        mlp, FEATURES, {"optimizer": pock.Adam(), "clip_norm": 0.5, "loss": pock.Loss(label_smoothing=0.1, ignore_index=4)}
    ),
    "sparse, AdamW": (
        Small, IMAGE,
        {"scheme": pock.Scheme({"*": "frozen", "blocks.1.conv*.weight": 0.5, "*.bias": "full"}), "optimizer": pock.AdamW()},
    ),
    "batch statistics": (Small, IMAGE, {"batch_norm": "batch"}),
    "micro-batches": (Small, IMAGE, {"micro_batches": 2, "batch_norm": "frozen", "accumulate": 2}),
    "many micro-batches": (mlp, torch.zeros(18, 12), {"micro_batches": 9}),
    "indices": (Tokens, WORDS, {"optimizer": pock.AdamW()}),
    "language": (Language, WORDS, {"loss": "causal_lm"}),
    "mse": (mlp, FEATURES, {"loss": "mse", "guard": "step"}),
    "bce": (mlp, FEATURES, {"loss": "bce_with_logits", "guard": "off"}),
    "eight bits": (
        Small, IMAGE,
        {
            "scheme": pock.Scheme({"*": "frozen", "blocks.1.*": "full", "head.*": "full"}), "frozen": "int8",
            "calibrate_with": np.random.default_rng(0).random(IMAGE.shape, "float32"),
        },
    ),
    "dropout, noise": (Dropping, FEATURES, {"dropout": True, "accumulate": 2, "micro_batches": 2}),
    "its own loss": (OwnLoss, torch.zeros(4, 6), {"loss": "output"}),
}  # fmt: skip


@functools.cache
def compiled(name: str, **more: object) -> pock.Program:
    """The program of a case. A program is immutable: tests share it."""
    make, example, options = CASES[name]
    torch.manual_seed(0)
    exported = torch.export.export(make().eval(), (example,))
    return pock.compile(exported, check=False, **({"batch_norm": "frozen"} | options | more))


def loaded(folder: Path) -> ModuleType:
    """The module ``net.py`` of a bundle."""
    spec = importlib.util.spec_from_file_location(f"net_of_{folder.name}", folder / "net.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def batch_of(program: pock.Program, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Inputs and a target at random, within their limits."""

    def array(name, shape, dtype):
        if dtype.startswith("int"):
            return rng.integers(0, program.index_limits.get(name, (0, 3))[1], shape).astype(dtype)
        return rng.random(shape).astype(dtype)

    inputs = [array(each["name"], each["shape"], each["dtype"]) for each in program.manifest["inputs"]]
    target = program.tensor("target")
    return inputs, target and array("target", *target)
