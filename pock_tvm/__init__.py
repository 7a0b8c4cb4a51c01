"""Pock-TVM: compiles a trained PyTorch model into a training program for a small device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .choosing.analysis import analyze
    from .choosing.contributions import Contributions
    from .choosing.scheme_search import search
    from .choosing.task import Task
    from .choosing.weight_groups import analyze_kinds
    from .compiler.driver import compile
    from .compiler.obstacles import check
    from .deploying.bundle import deploy
    from .device.losses import Loss
    from .device.optimizers import SGD, Adam, AdamW
    from .device.program import Program
    from .device.trainer import Trainer
    from .errors import CheckError, NonFiniteError, Obstacle, PockError, PockWarning
    from .frontend.custom_loss import CustomLoss
    from .schemes.scheme import Scheme
    from .training.recipe import Recipe
    from .tuning.tune import tune

_HOME = {
    "Adam": "device.optimizers",
    "AdamW": "device.optimizers",
    "CheckError": "errors",
    "Contributions": "choosing.contributions",
    "CustomLoss": "frontend.custom_loss",
    "Loss": "device.losses",
    "NonFiniteError": "device.errors",
    "Obstacle": "errors",
    "PockError": "errors",
    "PockWarning": "errors",
    "Program": "device.program",
    "Recipe": "training.recipe",
    "SGD": "device.optimizers",
    "Scheme": "schemes.scheme",
    "Task": "choosing.task",
    "Trainer": "device.trainer",
    "analyze": "choosing.analysis",
    "analyze_kinds": "choosing.weight_groups",
    "check": "compiler.obstacles",
    "compile": "compiler.driver",
    "deploy": "deploying.bundle",
    "search": "choosing.scheme_search",
    "tune": "tuning.tune",
}
__all__ = sorted([*_HOME, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> object:
    """Import what is asked for and no more: a trainer needs neither torch nor TVM's compiler."""
    if name not in _HOME:
        raise AttributeError(f"module 'pock_tvm' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
