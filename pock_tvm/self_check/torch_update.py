"""What PyTorch's optimizers make of a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..optimizers import SGD, AdamW, Optimizer

DTYPES = (torch.float64, torch.float32)


def coupled_decay(optimizer: Optimizer) -> float:
    """The weight decay that is added to the gradient."""
    return 0.0 if isinstance(optimizer, AdamW) else optimizer.weight_decay


def clipped(gradients: dict[str, np.ndarray | None], largest_norm: float | None) -> dict[str, np.ndarray | None]:
    """``torch.nn.utils.clip_grad_norm_``; gradients as they are where nothing is clipped."""
    if largest_norm is None:
        return gradients
    holders = {name: torch.zeros(()) for name in gradients}
    for name, gradient in gradients.items():
        if gradient is not None:
            holders[name] = torch.zeros(gradient.shape, dtype=torch.from_numpy(gradient).dtype)
            holders[name].grad = torch.from_numpy(gradient.copy())
    torch.nn.utils.clip_grad_norm_(list(holders.values()), largest_norm)
    return {name: None if holder.grad is None else holder.grad.numpy() for name, holder in holders.items()}


def second_update(
    optimizer: Optimizer, weight: np.ndarray, gradient: np.ndarray, lr: float, dtype: torch.dtype
) -> np.ndarray:
    """A weight behind two updates with the same gradient, the first with a rate of 0.

    ``gradient`` has the coupled decay in it already.
    """
    parameter = torch.nn.Parameter(torch.tensor(weight, dtype=dtype))
    parameter.grad = torch.tensor(gradient, dtype=dtype)
    steps = _torch_optimizer(optimizer, parameter)
    for rate in (0.0, lr):
        steps.param_groups[0]["lr"] = rate
        steps.step()
    return parameter.detach().numpy()


def _torch_optimizer(optimizer: Optimizer, parameter: torch.nn.Parameter) -> Any:
    if isinstance(optimizer, SGD):
        return torch.optim.SGD(
            [parameter], 0.0, optimizer.momentum, optimizer.dampening, nesterov=optimizer.nesterov
        )
    options = {"lr": 0.0, "betas": optimizer.betas, "eps": optimizer.eps}
    if isinstance(optimizer, AdamW):
        return torch.optim.AdamW([parameter], weight_decay=optimizer.weight_decay, **options)
    return torch.optim.Adam([parameter], **options)
