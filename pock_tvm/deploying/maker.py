"""What differs between kinds of devices: their makers write a device's own files into a bundle, and build it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..compiler.footprint.plan import Plan, plan_of
from ..compiler.footprint.state_form import StateForm, state_form
from ..device.program import Program
from .preparation import prepared_weights


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a bundle is made: the arguments of :func:`pock_tvm.deploy`."""

    source: bool
    embed_weights: bool
    cc: str
    build: bool
    threads: int
    flash: str | int | None
    ram: str | int | None
    samples: Mapping[str, np.ndarray] | None


@dataclass(frozen=True)
class Network:
    """A program, and what its code is printed from."""

    program: Program
    plan: Plan
    form: StateForm


def network_of(program: Program) -> Network:
    """Plan a program's bundle, and prepare its frozen weights."""
    plan = plan_of(program, prepared_weights(program))
    return Network(program, plan, state_form(program, plan))


class Maker(Protocol):
    """Maker of bundles for a kind of device, for one program. Its constructor refuses options that the device lacks.

    Its methods raise a ``PockError`` where the network does not fit the device, or the compiler fails.
    """

    embeds_weights: bool
    """Whether the weights are code."""
    has_c_library: bool = True
    """Whether kernels find the C library's functions on the device."""

    def texts(self, network: Network) -> dict[str, str]:
        """Return the files that only this kind of device has, by path."""

    def make(self, network: Network, folder: Path, kernels: Sequence[Path]) -> None:
        """Build what is asked for in a folder that holds all other files. ``kernels``: objects or sources."""

    def remarks(self, network: Network) -> list[str]:
        """Return what a user should know of the bundle, a line each."""
