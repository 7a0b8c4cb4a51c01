"""Lowered model: planned, scheduled as call lists, and without built kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import IRModule, relax

from relay_passes.memory.call_list import CallList
from schedules.decisions import Choice

from .parameters import Parameters


@dataclass(frozen=True)
class Lowered:
    """Result of phases 2 to 9."""

    module: IRModule
    """Kernels and executors as PrimFuncs."""
    entries: dict[str, CallList]
    """Entry points by name."""
    parameters: Parameters
    """Records of every array that a trainer keeps beside inputs and results."""
    micro_batches: int
    step: relax.Function
    """Training step of one micro-batch after phase 4."""
    places: dict[str, str]
    """Part of the network that each kernel computes, for messages."""
    kernels: dict[str, dict[str, Any]]
    """Costs of each kernel."""
    choices: dict[str, Choice]
    """Choices above kernels, by name."""
