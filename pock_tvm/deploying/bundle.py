"""Deploys a program: a folder with C code, kernels and weights that needs neither Python nor TVM."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..compiler.footprint.needs import is_freestanding
from ..compiler.footprint.plan import called_kernels
from ..device.arguments import PATH, require
from ..device.gpu.devices import refuse_gpu
from ..device.program import Program
from ..device.reading import reading
from ..device.trainer import CORES_USED
from ..errors import PockError, ProgramError
from .boards import BoardMaker
from .c_source import KERNELS, kernel_sources
from .computers import ComputerMaker
from .folders import new_bundle
from .hexagon import HexagonMaker, is_hexagon
from .maker import Maker, Network, Options, network_of
from .network_code import header_code, kernel_prototypes, network_code
from .phones import PhoneMaker, phone_of
from .symbols import runtime_for
from .templates import filled, text_of, write_texts
from .toolchain import ZIG

RUNTIME = ("pock_runtime.h", "pock_runtime.c", "pock_state.h", "pock_state.c", "pock_threads.c")
WORDS_A_LINE = 20


def deploy(
    program: Program | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    source: bool = False,
    embed_weights: bool = False,
    cc: str = ZIG,
    build: bool = True,
    threads: int = 1,
    flash: str | int | None = None,
    ram: str | int | None = None,
    samples: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a program as a bundle of C, and build its shared library and its program; return the folder.

    An earlier bundle there is replaced as a whole; other files in its folder stay.

    Parameters
    ----------
    program : Program or path
        What ``pock.compile`` returned, or a file of it that is not slim.
    folder : path
        A new or empty folder, or one of an earlier bundle. The folder above it exists.
    source : bool
        Write the kernels as portable C, in place of objects for the program's target.
    embed_weights : bool
        Put the weights into the code (``weights.c``), for devices without files.
    cc : str
        ``"zig"`` (the extra ``deploy``), which builds for other machines, too, or a C compiler for the program's
        target.
    build : bool
        Build it here.
    threads : int
        Threads of each instance in what is built here.
    flash, ram : str or int, optional
        What a microcontroller has: ``"512KB"``, or bytes. By default what its target's record says (``pock targets``).
    samples : mapping of argument to array, optional
        What ``main.c`` trains on at a microcontroller: whole batches of each input by its name, one after the other,
        and of the target as ``y``. By default one batch of zeros.

    Raises
    ------
    ProgramError
        The program is slim or damaged.
    PockError
        There is no toolchain, or it fails. The microcontroller has less flash or RAM than the program needs.
    WriteError
        The folder cannot be written.
    """
    require("the folder of a bundle", folder, PATH, PockError)
    require("threads", threads, CORES_USED, PockError)
    program = program if isinstance(program, Program) else Program.load(program)
    options = Options(
        source=source, embed_weights=embed_weights, cc=cc, build=build, threads=threads, flash=flash, ram=ram,
        samples=samples,
    )  # fmt: skip
    return bundled(program, folder, options)[0]


def bundled(program: Program, folder: str | os.PathLike[str], options: Options) -> tuple[Path, list[str]]:
    """Write a bundle, as :func:`deploy` does; return its folder, and what a user should know of it, a line each."""
    refuse_gpu(program.manifest["target"], "in a bundle")
    if not program.kernels:
        raise ProgramError(
            "this program is slim: it lacks the kernels that a bundle is made of. Save it again without slim=True"
        )
    maker = _maker_for(program, options)
    with new_bundle(folder) as made:
        network = network_of(program)
        kernels = _write(made, network, maker, source=options.source)
        maker.make(network, made, kernels)
    return Path(folder), maker.remarks(network)


def _maker_for(program: Program, options: Options) -> Maker:
    if is_freestanding(program.manifest["target"]["triple"]):
        return BoardMaker(program, options)
    if is_hexagon(program):
        return HexagonMaker(program, options)
    phone = phone_of(program)
    return ComputerMaker(program, options) if phone is None else PhoneMaker(program, options, phone)


def _write(folder: Path, network: Network, maker: Maker, *, source: bool) -> list[Path]:
    """Write all files of a bundle but what is built, and return those of the kernels."""
    program, plan, form = network.program, network.plan, network.form
    weights, objects = bytes(plan.weights), _objects(program)
    # What objects call, sources do, too.
    runtime = (*RUNTIME, *(() if maker.has_c_library else runtime_for(objects)))
    texts = {
        "pock.h": header_code(program, plan, form),
        "pock.c": network_code(program, plan, form, zlib.crc32(weights)),
        **{f"runtime/{name}": text_of(name) for name in runtime},
        **maker.texts(network),
        **{f"kernels/{name}": text for name, text in _kernel_texts(program, source=source).items()},
    }
    write_texts(folder, texts)
    if maker.embeds_weights:
        (folder / "weights.c").write_text(filled("weights.c", bytes=_embedded(weights)))
    else:
        (folder / "weights.bin").write_bytes(weights)
    for name, code in ({} if source else objects).items():
        (folder / "kernels" / f"{name}.o").write_bytes(code)
    return sorted((folder / "kernels").glob("*.c" if source else "*.o"))


def _kernel_texts(program: Program, *, source: bool) -> dict[str, str]:
    return kernel_sources(program) if source else {KERNELS: kernel_prototypes(program)}


def _objects(program: Program) -> dict[str, bytes]:
    """The objects of the kernels that a bundle's entry points call, by name."""
    with (
        reading(ProgramError, "the program's kernels are damaged ({}): compile it again, or copy it again"),
        zipfile.ZipFile(io.BytesIO(program.kernels)) as archive,
    ):
        return {kernel: archive.read(f"{kernel}.o") for kernel in called_kernels(program)}


def _embedded(data: bytes) -> str:
    lines = (data[at : at + WORDS_A_LINE] for at in range(0, len(data), WORDS_A_LINE))
    return "\n".join("  " + "".join(f"{byte}," for byte in line) for line in lines)
