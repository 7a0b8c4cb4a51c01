"""Bundles for microcontrollers: start-up code, memory map and a ``main.c`` for a board that QEMU emulates."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..compiler.footprint.needs import (
    STACK_BYTES,
    Limits,
    Needs,
    core_of,
    limits_of,
    needs_of_plan,
    unknown_limits,
)
from ..device.program import Program
from ..errors import PockError
from .maker import Maker, Network, Options
from .samples import sample_names, sample_texts, samples_of
from .symbols import MATH
from .templates import BOARDS as FOLDER
from .templates import filled, libc_texts, text_of
from .toolchain import SOURCES, WARNINGS, ZIG, run_compiler, zig_command

STEPS, RATE = 20, "0.01f"
"""Steps and learning rate of ``main.c``, to be changed there."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """Board of QEMU's with a core, and where its memories begin."""

    name: str
    cpu: str
    """The core, by LLVM's name."""
    fpu: str
    zig_fpu: str
    """Zig's name of its floating-point unit. Without it, zig silently passes numbers in other registers."""
    flash_start: int
    ram_start: int

    @property
    def gcc_flags(self) -> list[str]:
        """Arguments of GCC for the core."""
        return [f"-mcpu={self.cpu}", "-mthumb", f"-mfpu={self.fpu}", "-mfloat-abi=hard", "-nostartfiles"]

    @property
    def zig_flags(self) -> list[str]:
        """Arguments of zig for the core. It has the functions of the C library that are called, but no header."""
        core = self.cpu.replace("-", "_")
        return ["-target", "thumb-freestanding-eabihf", f"-mcpu={core}+{self.zig_fpu}", "-Iboard/libc"]

    def compiler(self, cc: str) -> list[str]:
        """Return the command of zig, or of another compiler, with its arguments for the core.

        Raises
        ------
        PockError
            It is missing.
        """
        if cc == ZIG:
            return [*zig_command(), *self.zig_flags]
        found = shutil.which(cc)
        if found is None:
            raise PockError(f"there is no C compiler '{cc}': install it (Debian: gcc-arm-none-eabi), or take zig")
        return [found, *self.gcc_flags]


BOARDS = (
    Board(
        name="mps2-an500", cpu="cortex-m7", fpu="fpv5-d16", zig_fpu="fp_armv8d16",
        flash_start=0x00000000, ram_start=0x20000000,
    ),
    Board(
        name="mps2-an505", cpu="cortex-m33", fpu="fpv5-sp-d16", zig_fpu="fp_armv8d16sp",
        flash_start=0x10000000, ram_start=0x38000000,
    ),
)  # fmt: skip
COMMON = [
    *WARNINGS, "-Os", "-fno-math-errno", "-ffunction-sections", "-fdata-sections", "-I.", "-Iruntime", "-Ikernels",
    "-Wl,--gc-sections", "-Wl,-T,board/board.ld",
]  # fmt: skip
OWN_SOURCES = ("main.c", "samples.c", "weights.c", "board/board.c")


class BoardMaker(Maker):
    """Maker of bundles for microcontrollers: ``network.elf``, whose weights and samples are code."""

    embeds_weights = True
    has_c_library = False

    def __init__(self, program: Program, options: Options) -> None:
        target = program.manifest["target"]
        if options.threads > 1:
            raise PockError(f"a microcontroller has one core for the network: leave threads={options.threads} out")
        limits = limits_of(target, options.flash, options.ram)
        if limits is None:
            raise PockError(unknown_limits(target))
        self._board, self._limits = _board_for(core_of(target)), limits
        self._compiler = self._board.compiler(options.cc) if options.build else None
        self._samples = samples_of(program, options.samples)

    def texts(self, network: Network) -> dict[str, str]:
        """Return start-up code, memory map, samples and what trains on them, if the device has room for the network."""
        needs = needs_of_plan(network.program, network.plan, network.form)
        needs.check(self._limits)
        return _texts(self._board, network.program, needs, self._limits, self._samples)

    def make(self, network: Network, folder: Path, kernels: Sequence[Path]) -> None:
        """Build ``network.elf``."""
        if self._compiler is None:
            return
        sources = [*SOURCES, *OWN_SOURCES, *(f"runtime/{path.name}" for path in folder.glob(f"runtime/{MATH}"))]
        named = [f"kernels/{path.name}" for path in kernels]
        run_compiler([*self._compiler, *COMMON, *sources, *named, "-o", "network.elf"], folder)

    def remarks(self, network: Network) -> list[str]:
        """Return what flash and RAM it needs."""
        return [f"needs {needs_of_plan(network.program, network.plan, network.form)}", "see its README.md"]


def _board_for(cpu: str | None) -> Board:
    found = next((board for board in BOARDS if board.cpu == cpu), None)
    if found is None:
        names = " or ".join(board.cpu for board in BOARDS)
        raise PockError(f"there is no board with a {cpu or 'generic'} core: compile the program for {names}")
    return found


def _texts(
    board: Board, program: Program, needs: Needs, limits: Limits, samples: Mapping[str, np.ndarray]
) -> dict[str, str]:
    return {
        "board/board.h": text_of("board.h", FOLDER),
        "board/board.c": text_of("board.c", FOLDER),
        **{f"board/libc/{name}": text for name, text in libc_texts().items()},
        "board/board.ld": filled(
            "board.ld", FOLDER, machine=limits.machine, flash_start=f"{board.flash_start:#x}",
            ram_start=f"{board.ram_start:#x}", flash=limits.flash, ram=limits.ram, stack=STACK_BYTES,
        ),
        "main.c": filled("main.c", FOLDER, steps=STEPS, rate=RATE, names=sample_names(program)),
        **sample_texts(program, samples),
        "Makefile": filled(
            "Makefile", FOLDER, machine=limits.machine, board=board.name, flags=" ".join([*board.gcc_flags, *COMMON])
        ),
        "README.md": filled(
            "README.md", FOLDER, machine=limits.machine, triple=program.manifest["target"]["triple"], board=board.name,
            **{name: f"{size:,}" for name, size in needs.parts().items()},
        ),
    }  # fmt: skip
