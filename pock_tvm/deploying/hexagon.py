"""Bundles for Hexagon DSPs: a free-standing program, and the network in memory that a host shares."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from schedules.cpu.hexagon import operand_alignments

from ..compiler.footprint.needs import core_of, limits_of
from ..compiler.footprint.plan import HEXAGON as TRIPLE
from ..compiler.footprint.plan import VECTOR_BYTES, bundled
from ..device.program import Program, kernel_calls
from ..errors import PockError
from .boards import RATE, STEPS
from .c_source import kernel_definitions
from .maker import Maker, Network, Options
from .network_code import Argument, arguments_of, given_arguments
from .samples import sample_names, sample_texts, samples_of
from .symbols import MATH
from .templates import BOARDS, HEXAGON, filled, libc_texts, text_of
from .toolchain import SOURCES, WARNINGS, ZIG, run_compiler

CLANG, LINKER = "clang-19", "ld.lld-19"
HEAD_BYTES = 280
"""Bytes of the shared memory before the first array: code, rate, loss, reason and seed."""
COMMON = [
    *WARNINGS, "-O2", "-G0", "-ffreestanding", "-fno-builtin", "-fno-math-errno", "-fno-pic", "-ffunction-sections",
    "-fdata-sections", "-I.", "-Iruntime", "-Ikernels", "-Iboard", "-Iboard/libc",
    "-DPOCK_WITHOUT_SDK",
]  # fmt: skip
LINK = ["-m", "hexagonelf", "-static", "--gc-sections", "-e", "_start"]
OWN_SOURCES = (
    "main.c",
    "samples.c",
    "weights.c",
    "board/board.c",
    "board/builtins.c",
    "dsp/pock_shared.c",
    "dsp/pock_dsp.c",
)


def is_hexagon(program: Program) -> bool:
    """Return whether a program was compiled for a Hexagon DSP."""
    return program.manifest["target"]["triple"].startswith(TRIPLE)


class HexagonMaker(Maker):
    """Maker of bundles for Hexagon: ``network.elf``, whose weights and samples are code."""

    embeds_weights = True
    has_c_library = False

    def __init__(self, program: Program, options: Options) -> None:
        target = program.manifest["target"]
        limits_of(target, options.flash, options.ram)
        if options.threads > 1:
            raise PockError(f"a step is one call of the DSP, on one thread: leave threads={options.threads} out")
        self._version = _version_of(core_of(target))
        self._tools = _tools(options.cc) if options.build else None
        self._samples = samples_of(program, options.samples)

    def texts(self, network: Network) -> dict[str, str]:
        """Return start-up code, samples and what trains on them, and what a host needs."""
        program = network.program
        check_alignment(network)
        folder = {name: text_of(name, HEXAGON) for name in ("pock_dsp.idl", "pock_dsp.c", "without_sdk.h")}
        shared = _shared_texts(network)
        machine = f"hexagon-{self._version}"
        return {
            "board/board.h": text_of("board.h", BOARDS),
            "board/board.c": text_of("start.c", HEXAGON),
            "board/builtins.c": text_of("builtins.c", HEXAGON),
            **{f"board/libc/{name}": text for name, text in libc_texts().items()},
            "main.c": filled("main.c", BOARDS, steps=STEPS, rate=RATE, names=sample_names(program)),
            **sample_texts(program, self._samples),
            **{f"dsp/{name}": text for name, text in (folder | shared).items()},
            "Makefile": filled(
                "Makefile", HEXAGON, machine=machine, link=" ".join(LINK),
                flags=" ".join([*clang_flags(self._version), *COMMON]), sources=" ".join([*SOURCES, *OWN_SOURCES]),
            ),
            "README.md": filled(
                "README.md", HEXAGON, machine=machine, triple=program.manifest["target"]["triple"],
                memory=f"{network.plan.memory.size:,}", weights=f"{len(network.plan.weights):,}",
                state=f"{network.form.nbytes:,}", shared=f"{_layout(network)[1]:,}",
            ),
        }  # fmt: skip

    def make(self, network: Network, folder: Path, kernels: Sequence[Path]) -> None:
        """Build ``network.elf``."""
        if self._tools is None:
            return
        compiler, linker = self._tools
        sources = [*SOURCES, *OWN_SOURCES, *(f"runtime/{path.name}" for path in folder.glob(f"runtime/{MATH}"))]
        sources += [f"kernels/{path.name}" for path in kernels if path.suffix == ".c"]
        objects = [f"kernels/{path.name}" for path in kernels if path.suffix == ".o"]
        with tempfile.TemporaryDirectory(dir=folder) as work:
            for source in sources:
                objects.append(f"{work}/{Path(source).stem}.o")
                run_compiler([compiler, *clang_flags(self._version), *COMMON, "-c", source, "-o", objects[-1]], folder)
            run_compiler([linker, *LINK, *objects, "-o", "network.elf"], folder)

    def remarks(self, network: Network) -> list[str]:
        """Return what was not run."""
        return ["dsp/: FastRPC's side is compiled by no SDK, and was run on no device", "see its README.md"]


def _version_of(cpu: str | None) -> str:
    found = re.fullmatch(r"hexagon(v\d+t?)", cpu or "")
    if found is None:
        raise PockError(f"the Hexagon core '{cpu}' has no version: compile the program for hexagon-v66, or a later one")
    return found[1]


def _tools(cc: str) -> tuple[str, str]:
    """Return the paths of the compiler and the linker.

    Raises
    ------
    PockError
        One is missing.
    """
    names = (CLANG if cc == ZIG else cc, LINKER)
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise PockError(
            f"there is no {' and no '.join(missing)}, which bundles for Hexagon are built by: install them "
            "(Debian: clang-19 lld-19), or print the bundle without building (build=False), and build it there"
        )
    return names


def check_alignment(network: Network) -> None:
    """Check that each operand, and scratch, begins where its kernel's code takes it to begin.

    Raises
    ------
    PockError
        One does not: its vectors would be read from elsewhere.
    """
    program, plan = network.program, network.plan
    definitions = kernel_definitions(program)
    alignments = {name: [*operand_alignments(func), VECTOR_BYTES] for name, func in definitions}  # scratch comes last
    for name, entry in bundled(program.manifest["entries"]).items():
        for kernel, operands in kernel_calls(entry):
            for operand, alignment in zip(operands, alignments[kernel], strict=False):
                offset = plan.place(entry, name, *operand).offset
                if offset % alignment:
                    raise PockError(
                        f"an operand of the kernel '{kernel}' begins at byte {offset}, and Hexagon's vectors there are "
                        f"read at multiples of {alignment}: compile with micro_batches=1, or without frozen='int8'"
                    )


def clang_flags(version: str) -> list[str]:
    """Return the arguments of Clang for a version."""
    return ["--target=hexagon-unknown-linux-musl", f"-m{version}", f"-mhvx={version}", "-mhvx-length=128b"]


def _shared_texts(network: Network) -> dict[str, str]:
    """Return the layout of the shared memory, and the functions on both of its sides."""
    program = network.program
    arguments, given = arguments_of(program), given_arguments(program)
    places, size = _layout(network)

    def fields(those: Sequence[Argument]) -> str:
        return "\n".join(
            f"    _Alignas(POCK_SHARED_ALIGNMENT) {each.c_type} {each.variable}[{each.count}];" for each in those
        )

    def passed(group: str, those: Sequence[Argument]) -> str:
        return "".join(f", shared->{group}.{each.variable}" for each in those)

    return {
        "pock_shared.h": filled(
            "pock_shared.h", HEXAGON, memory=network.plan.memory.size, size=size,
            batch=fields(given), results=fields(arguments.outputs),
            offsets="\n".join(
                f'_Static_assert(offsetof(pock_shared, {name}) == {place}, "the layout is the same on both sides");'
                for name, place in places.items()
            ),
        ),
        "pock_shared.c": filled(
            "pock_shared.c", HEXAGON, step=passed("batch", given),
            predict=passed("batch", arguments.inputs) + passed("results", arguments.outputs),
        ),
        "host.c": filled(
            "host.c", HEXAGON, steps=STEPS, rate=RATE,
            copies="\n".join(
                f"    memcpy(shared->batch.{name}, sample_{name}[batch], sizeof shared->batch.{name});"
                for name in (each.variable for each in given)
            ),
        ),
    }  # fmt: skip


def _layout(network: Network) -> tuple[dict[str, int], int]:
    """Return the offset of each array in the shared memory, by its name in C, and the size of all."""
    arrays = [(f"batch.{each.variable}", each.nbytes) for each in given_arguments(network.program)]
    arrays += [(f"results.{each.variable}", each.nbytes) for each in arguments_of(network.program).outputs]
    places, end = {}, HEAD_BYTES
    for name, size in (*arrays, ("memory", network.plan.memory.size)):
        places[name] = -(-end // VECTOR_BYTES) * VECTOR_BYTES
        end = places[name] + size
    return places, -(-end // VECTOR_BYTES) * VECTOR_BYTES
