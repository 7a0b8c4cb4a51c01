"""Pock-TVM: compiles a trained PyTorch model into a training program for a small device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .analysis import analyze
    from .compiler import compile
    from .contribution import Contributions, Task
    from .errors import CheckError, Obstacle, PockError, PockWarning
    from .fine_tuning import Recipe
    from .kinds import analyze_kinds
    from .losses import Loss
    from .obstacles import check
    from .optimizers import SGD, Adam, AdamW
    from .program import Program
    from .scheme import Scheme
    from .scheme_search import search
    from .trainer import Trainer

_HOME = {
    "Adam": "optimizers",
    "AdamW": "optimizers",
    "CheckError": "errors",
    "Contributions": "contribution",
    "Loss": "losses",
    "Obstacle": "errors",
    "PockError": "errors",
    "PockWarning": "errors",
    "Program": "program",
    "Recipe": "fine_tuning",
    "SGD": "optimizers",
    "Scheme": "scheme",
    "Task": "contribution",
    "Trainer": "trainer",
    "analyze": "analysis",
    "analyze_kinds": "kinds",
    "check": "obstacles",
    "compile": "compiler",
    "search": "scheme_search",
}
__all__ = sorted([*_HOME, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> object:
    """Import what is asked for and no more: a trainer needs neither torch nor TVM's compiler."""
    if name not in _HOME:
        raise AttributeError(f"module 'pock_tvm' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
