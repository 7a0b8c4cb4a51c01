"""Random small networks of everything that is supported, in shapes that hurt."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.errors import MissingGradient
from tests.numeric.parity import worst_difference

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 33)
ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardswish,
    nn.ELU,
    nn.Softplus,
    nn.LeakyReLU,
)
STEPS, RATE = 2, 0.02
NOISE = 1e-4
"""Relative difference of updates from which one asks whether they have a gradient."""
ROUNDING, SHARE = 1e-6, 1e-4
"""Largest gradients that are rounding alone, where values are about 1; and as a share of the network's largest."""


class Beside(nn.Module):
    """Adds what a module makes to its input, or puts it behind it along an axis."""

    def __init__(self, inner: nn.Module, axis: int | None) -> None:
        super().__init__()
        self.inner, self.axis = inner, axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x) if self.axis is None else torch.cat([x, self.inner(x)], self.axis)


class Attention(nn.Module):
    """Scaled dot-product attention over tokens, with or without a causal mask."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        parts = (part.view(batch, tokens, self.heads, -1).transpose(1, 2) for part in self.mix(x).chunk(3, -1))
        found = nn.functional.scaled_dot_product_attention(*parts, is_causal=self.causal)
        return self.out(found.transpose(1, 2).reshape(batch, tokens, width))


class Gated(nn.Module):
    """One half of the last axis times a function of the other; an odd element is left out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        return x[..., :half] * torch.sigmoid(x[..., half : 2 * half])


@dataclass
class Generator:
    """Draws layers one after the other: ``shape`` is that of what the last one makes, without the batch."""

    rng: np.random.Generator
    shape: tuple[int, ...]

    def pick(self, options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def layer(self) -> nn.Module:
        """A layer that fits the present shape, and the shape behind it."""
        if self.rng.random() < 0.3:
            return self.pick(ACTIVATIONS)()
        return {3: self._of_images, 2: self._of_tokens, 1: self._of_vectors}[len(self.shape)]()

    def _of_images(self) -> nn.Module:
        channels, height, width = self.shape
        kind = self.pick(
            ("conv", "conv", "conv", "depthwise", "grouped", "transposed", "norm", "norm", "pool", "beside")
        )
        out = self.pick(CHANNELS)
        if kind in ("conv", "depthwise", "grouped"):
            size, step, dilation = self.pick((1, 3, 3, 5)), self.pick((1, 1, 2, 3)), self.pick((1, 1, 2))
            groups = {"conv": 1, "depthwise": channels, "grouped": max(channels // 2, 1)}[kind]
            if channels % groups:
                groups = 1
            out = max(out // groups, 1) * groups
            pad = self.pick((0, size // 2, size // 2 * dilation))
            if min(height, width) + 2 * pad < dilation * (size - 1) + 1:
                pad = dilation * (size - 1)
            return self._spatial(
                nn.Conv2d(channels, out, size, step, pad, dilation, groups, bias=self.pick((True, False)))
            )
        if kind == "transposed" and height * width < 200:
            size, step, pad = self.pick((2, 3)), self.pick((1, 2)), self.pick((0, 1))
            pad = min(pad, min(height, width) - 1)  # else nothing may be left
            return self._spatial(nn.ConvTranspose2d(channels, out, size, step, pad))
        if kind == "pool" and min(height, width) >= 3:
            made = self.pick(
                (
                    nn.MaxPool2d(2),
                    nn.MaxPool2d(3, 2, 1),
                    nn.AvgPool2d(2),
                    nn.AvgPool2d(3, 1, 1),
                    nn.AdaptiveAvgPool2d(1),
                )
            )
            return self._spatial(made)
        if kind == "beside":
            axis = self.pick((None, 1))
            inner = nn.Conv2d(channels, channels, 3, padding=1)
            self.shape = (channels * (1 if axis is None else 2), height, width)
            return Beside(inner, axis)
        norms = [
            nn.BatchNorm2d(channels),
            nn.GroupNorm(math.gcd(channels, 4), channels),
            nn.InstanceNorm2d(channels, affine=True),
        ]
        return self.pick(norms if height * width > 4 else norms[:1])

    def _spatial(self, made: nn.Module) -> nn.Module:
        shape = made.eval()(torch.zeros(1, *self.shape)).shape[1:]
        if min(shape) < 1:
            return nn.Identity()
        self.shape = tuple(shape)
        return made

    def _of_tokens(self) -> nn.Module:
        tokens, width = self.shape
        kind = self.pick(("linear", "linear", "norm", "attention", "gate", "softmax", "beside"))
        if kind == "attention":
            return Attention(width, self.pick([n for n in (1, 2, 3, 4) if width % n == 0]), self.pick((True, False)))
        if kind == "norm":
            return self.pick((nn.LayerNorm(width), nn.RMSNorm(width, eps=1e-5), nn.LayerNorm((tokens, width))))
        return self._of_last(kind)

    def _of_vectors(self) -> nn.Module:
        kind = self.pick(("linear", "linear", "norm", "gate", "softmax", "beside"))
        return nn.LayerNorm(self.shape[-1]) if kind == "norm" else self._of_last(kind)

    def _of_last(self, kind: str) -> nn.Module:
        *rest, width = self.shape
        if kind == "gate" and width > 1:
            self.shape = (*rest, width // 2)
            return Gated()
        if kind == "softmax":
            return nn.Softmax(-1)
        if kind == "beside":
            return Beside(nn.Linear(width, width), None)
        out = self.pick(CHANNELS)
        self.shape = (*rest, out)
        return nn.Linear(width, out, bias=self.pick((True, False)))


@dataclass(frozen=True)
class Drawn:
    """A network, how it is trained, and its batches."""

    exported: torch.export.ExportedProgram
    options: dict[str, Any]
    batches: list[tuple[np.ndarray, np.ndarray]]
    text: str


def draw(seed: int) -> Drawn:
    """Draw the network of a seed."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    batch = int(rng.integers(1, 6))
    pick = Generator(rng, ()).pick
    kind = pick(("images", "images", "tokens", "vectors"))
    sizes = (1, 3, 5, 7, 9, 12, 17)
    shape = {
        "images": (pick((1, 3, 5)), pick(sizes[2:]), pick(sizes[2:])),
        "tokens": (pick(sizes), pick((4, 6, 8, 15, 33))),
        "vectors": (pick(CHANNELS[2:]),),
    }[kind]
    generator = Generator(rng, shape)
    layers = [generator.layer() for _ in range(rng.integers(1, 6))]
    classes = pick((2, 3, 7, 10))
    if len(generator.shape) == 3 and rng.random() < 0.5:
        layers.append(nn.AdaptiveAvgPool2d(1))
        generator.shape = (generator.shape[0], 1, 1)
    layers += [nn.Flatten(), nn.Linear(math.prod(generator.shape), classes)]
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    exported = torch.export.export(model.eval(), (torch.randn(batch, *shape),))
    dense = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
        and module.weight.shape[1] > 1
    ]
    schemes: list[pock.Scheme | None] = [None]
    if dense:
        schemes.append(pock.Scheme({"*.bias": "full", dense[-1]: "full"}))
        schemes.append(pock.Scheme({dense[0]: 0.5, dense[-1]: "full"}))
    options: dict[str, Any] = {
        "scheme": pick(schemes),
        "optimizer": pick(
            (pock.SGD(), pock.SGD(momentum=0.9, nesterov=True), pock.AdamW(eps=1e-3), pock.Adam(eps=1e-3))
        ),
        "clip_norm": pick((None, None, 0.5)),
        "accumulate": pick((1, 1, 2)),
        "batch_norm": "batch" if batch > 2 and rng.random() < 0.3 else "frozen",
        "loss": pick(("cross_entropy", pock.Loss("cross_entropy", label_smoothing=0.1), "mse")),
    }
    regression = options["loss"] == "mse"
    batches = [
        (
            rng.standard_normal((batch, *shape)).astype("float32"),
            rng.standard_normal((batch, classes)).astype("float32") if regression else rng.integers(0, classes, batch),
        )
        for _ in range(STEPS * options["accumulate"])
    ]
    return Drawn(exported, options, batches, f"{batch} x {shape}: {model} {options}")


def compare(drawn: Drawn, target: str, expected: str = "host") -> float:
    """Train on two targets; return the largest relative difference of an update or a loss.

    Where a weight that was drawn to be trained in part cannot be, everything is trained.
    """
    trainers, losses, options = [], [], drawn.options
    for each in (expected, target):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pock.PockWarning)
            try:
                program = pock.compile(drawn.exported, target=each, check=False, **options)
            except MissingGradient:
                options = options | {"scheme": None}
                program = pock.compile(drawn.exported, target=each, check=False, **options)
        trainers.append(pock.Trainer(program))
        losses.append([trainers[-1].step(x, y, lr=RATE) for x, y in drawn.batches])
    program, found, wanted = trainers[0].program, trainers[1].weights(), trainers[0].weights()
    trained = {name: wanted[name] for name in program.trained}
    difference, _ = worst_difference(program, found, trained)
    if difference > NOISE:  # a bias before a norm has no gradient but rounding, of which Adam makes an update
        without = _without_gradient(drawn, expected, options)
        trained = {name: array for name, array in trained.items() if name not in without}
        difference, _ = worst_difference(program, found, trained)
    others = [
        np.max(np.abs(found[name] - array), initial=0) for name, array in wanted.items() if name not in program.trained
    ]
    relative = np.abs(np.subtract(*losses)) / (1e-3 + np.abs(losses[0]))
    return float(max(difference, *others, *relative))


def _without_gradient(drawn: Drawn, target: str, options: dict[str, Any]) -> list[str]:
    """Names of the trained parameters whose gradients are rounding, beside the largest: by steps of plain SGD."""
    program = pock.compile(drawn.exported, target=target, check=False, **options | {"optimizer": pock.SGD()})
    trainer = pock.Trainer(program)
    for x, y in drawn.batches:
        trainer.step(x, y, lr=RATE)
    updates = {name: np.abs(array - program.weights[name]).max(initial=0) for name, array in trainer.weights().items()}
    most = max(ROUNDING * RATE, SHARE * max(updates[name] for name in program.trained))
    return [name for name in program.trained if updates[name] <= most]
