"""A row of the zoo: an architecture with random weights, and what its inputs are drawn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.numeric.draws import Draw

NEARLY_CONSTANT = 1e-3
"""Standard deviation of a tensor below which its initial values would hide a gradient."""
SPREAD = 0.2
"""Half the width of what such tensors are perturbed by."""


def first(results: Any) -> torch.Tensor:
    """The (first) tensor that a network returns."""
    return results if isinstance(results, torch.Tensor) else results[0]


@dataclass(frozen=True)
class Row:
    """An architecture. What is smaller than its usual size is said in its name."""

    name: str
    """Library and network: ``timm/resnet18 (a block a stage)``."""
    make: Callable[[], nn.Module]
    inputs: dict[str, Draw]
    """By the names of the arguments of ``forward``."""
    results: Callable[[Any], torch.Tensor] = field(default=first)
    """Picks the value that the loss reads from the network's results."""
    loss: str = "mse"
    why_refused: str = ""
    """Why it cannot be trained, if so: a regular expression that the refusal matches."""


class Network(nn.Module):
    """An architecture that takes its inputs in the order of its row, and returns what the loss reads."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row, self.network = row, row.make()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.row.results(self.network(**dict(zip(self.row.inputs, inputs, strict=True))))


def network_of(row: Row) -> Network:
    """Build a row's network for inference, with every constant initial value perturbed."""
    torch.manual_seed(0)
    torch.distributions.Distribution.set_default_validate_args(False)  # torch.export cannot follow what they ask
    network = Network(row).eval()
    with torch.no_grad():
        for tensor in [*network.parameters(), *_statistics(network)]:
            if tensor.is_floating_point() and (tensor.numel() == 1 or float(tensor.std()) < NEARLY_CONSTANT):
                tensor += SPREAD * (2 * torch.rand(tensor.shape) - 1)
    return network


def _statistics(network: nn.Module) -> list[torch.Tensor]:
    """Running means and variances of batch norms."""
    return [buffer for name, buffer in network.named_buffers() if name.endswith(("running_mean", "running_var"))]


def drawn(row: Row, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw the inputs of a row."""
    return [draw(rng) for draw in row.inputs.values()]
