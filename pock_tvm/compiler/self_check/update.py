"""Checks an optimizer's update against PyTorch's, given the same gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...device.optimizers import SGD, AdamW, Optimizer
from ...errors import CheckError
from .compare import masked
from .measured import Weights
from .probe import RATE

DTYPES = (torch.float64, torch.float32)
UPDATE_ERROR = 1e-5
"""Largest relative error of an element's update, apart from the rounding of its weight."""


def clipped(gradients: Mapping[str, np.ndarray], largest_norm: float) -> dict[str, np.ndarray]:
    """Clip gradients with ``torch.nn.utils.clip_grad_norm_``."""
    holders = [torch.nn.Parameter(torch.from_numpy(gradient)) for gradient in gradients.values()]
    for holder in holders:
        holder.grad = holder.detach().clone()
    torch.nn.utils.clip_grad_norm_(holders, largest_norm)
    return {name: holder.grad.numpy() for name, holder in zip(gradients, holders, strict=True)}


def check_updates(
    optimizer: Optimizer,
    trained: Mapping[str, Any],
    gradients: Mapping[str, np.ndarray | None],
    before: Weights,
    after: Weights,
) -> None:
    """Refuse weights that differ from those after two updates of PyTorch's optimizer, the first with rate 0.

    ``gradients`` are those of both updates, as the optimizer sees them.
    """
    for name, what in trained.items():
        gradient = gradients[name]
        if name not in after or gradient is None or not gradient.any():
            continue
        start = before[name].astype("float64")
        for dtype in DTYPES:  # in single precision squares of tiny gradients underflow
            expected = start + masked(_second_update(optimizer, start, gradient, dtype) - start, what)
            rounding = 4 * np.finfo("float32").eps * np.maximum(np.abs(start), np.abs(expected))
            excess = np.abs(after[name] - expected) - UPDATE_ERROR * np.abs(expected - start) - rounding
            if not (excess > 0).any():
                break
        else:
            at = np.unravel_index(int(excess.argmax()), excess.shape)
            raise CheckError(
                f"the update of '{name}' is not that of PyTorch's {type(optimizer).__name__}: at "
                f"{[int(index) for index in at]} it goes from {start[at]:.7g} to {after[name][at]:.7g} instead of "
                f"{expected[at]:.7g}"
            )


def _second_update(optimizer: Optimizer, weight: np.ndarray, gradient: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Update a weight twice with the same gradient, the first time with rate 0."""
    parameter = torch.nn.Parameter(torch.tensor(weight, dtype=dtype))
    parameter.grad = torch.tensor(gradient, dtype=dtype)
    steps = _torch_optimizer(optimizer, parameter)
    for rate in (0.0, RATE):
        steps.param_groups[0]["lr"] = rate
        steps.step()
    return parameter.detach().double().numpy()


def _torch_optimizer(optimizer: Optimizer, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    """PyTorch's optimizer, without the coupled weight decay that the gradient includes already."""
    if isinstance(optimizer, SGD):
        momentum, dampening, nesterov = optimizer.momentum, optimizer.dampening, optimizer.nesterov
        return torch.optim.SGD([parameter], 0.0, momentum, dampening, nesterov=nesterov)
    options = {"lr": 0.0, "betas": optimizer.betas, "eps": optimizer.eps}
    if isinstance(optimizer, AdamW):
        return torch.optim.AdamW([parameter], weight_decay=optimizer.weight_decay, **options)
    return torch.optim.Adam([parameter], **options)
