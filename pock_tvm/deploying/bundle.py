"""Deploys a program: a folder with C code, kernels and weights that needs neither Python nor TVM."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..device.arguments import PATH, require
from ..device.program import Program
from ..device.reading import reading
from ..device.trainer import CORES_USED
from ..errors import PockError, ProgramError
from .boards import board_for, board_texts, build_for, samples_of
from .c_source import KERNELS, kernel_sources
from .folders import new_bundle
from .needs import limits_of, needs_of_plan
from .network_code import Argument, arguments_of, given_arguments, header_code, kernel_prototypes, network_code
from .phones import check_options, package, phone_of
from .plan import Plan, called_kernels, plan_of
from .preparation import prepared_weights
from .state_form import StateForm, state_form
from .symbols import is_freestanding, runtime_for
from .templates import filled, text_of, write_texts
from .toolchain import ZIG, toolchain_for

RUNTIME = ("pock_runtime.h", "pock_runtime.c", "pock_threads.c")
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
    if not program.kernels:
        raise ProgramError(
            "this program is slim: it lacks the kernels that a bundle is made of. Save it again without slim=True"
        )
    triple = program.manifest["target"]["triple"]
    board, limits = board_for(program), limits_of(program, flash, ram)
    phone = phone_of(program)
    if board is not None and threads > 1:
        raise PockError(f"a microcontroller has one core for the network: leave threads={threads} out")
    if build and phone is not None:
        check_options(phone, cc, threads, source=source)
    toolchain = toolchain_for(triple, cc) if build and board is None and phone is None else None
    with new_bundle(folder) as made:
        plan = plan_of(program, prepared_weights(program))
        form = state_form(program, plan)
        of_board: Mapping[str, str] = {}
        if board is not None and limits is not None:
            embed_weights, needs = True, needs_of_plan(program, plan, form)
            needs.check(limits)
            of_board = board_texts(board, program, needs, limits, samples_of(program, samples))
        kernels = _write(made, program, plan, form, of_board, source=source, embed_weights=embed_weights)
        if build and board is not None:
            build_for(board, made, cc)
        elif phone is not None:
            package(phone, made, program, plan, form, kernels, build=build)
        elif toolchain is not None:
            toolchain.build(made, kernels, threads, embedded=embed_weights)
    return Path(folder)


def _write(
    folder: Path,
    program: Program,
    plan: Plan,
    form: StateForm,
    of_board: Mapping[str, str],
    *,
    source: bool,
    embed_weights: bool,
) -> list[Path]:
    """Write all files of a bundle, and return those of the kernels. ``of_board``: those for its microcontroller."""
    weights = bytes(plan.weights)
    objects = {} if source else _objects(program)
    runtime = (*RUNTIME, *(runtime_for(objects) if is_freestanding(program.manifest["target"]["triple"]) else ()))
    texts = {
        "pock.h": header_code(program, plan, form),
        "pock.c": network_code(program, plan, form, zlib.crc32(weights)),
        **{f"runtime/{name}": text_of(name) for name in runtime},
        **(of_board or _caller_texts(program, plan, form)),
        **{f"kernels/{name}": text for name, text in _kernel_texts(program, source=source).items()},
    }
    write_texts(folder, texts)
    if embed_weights:
        (folder / "weights.c").write_text(filled("weights.c", bytes=_embedded(weights)))
    else:
        (folder / "weights.bin").write_bytes(weights)
    for name, code in objects.items():
        (folder / "kernels" / f"{name}.o").write_bytes(code)
    return sorted((folder / "kernels").glob("*.c" if source else "*.o"))


def _caller_texts(program: Program, plan: Plan, form: StateForm) -> dict[str, str]:
    """Files that a system builds and runs: ``main.c``, ``net.py``, … They know the network's arguments."""
    arguments, given, manifest = arguments_of(program), given_arguments(program), program.manifest
    batch = arguments.inputs[0].shape[:1]
    has_samples = bool(batch) and all(each.shape[:1] == batch for each in given)
    rows = batch[0] if has_samples else 1

    def described(each: Argument) -> str:
        return repr((each.name, each.shape, each.dtype))

    main = filled(
        "main.c",
        rows=rows,
        declarations="\n".join(f"static {each.c_type} batch_{each.variable}[{each.count}];" for each in given),
        reads="\n".join(
            f"  for (size_t i = 0; i < {each.count // rows}; i++)\n"
            f"    if (!number(&at, &value)) return 0;\n"
            f"    else batch_{each.variable}[row * {each.count // rows} + i] = ({each.c_type})value;"
            for each in given
        ),
        names=", ".join(f"batch_{each.variable}" for each in given),
        columns=" then ".join(f"{each.count // rows} of {each.variable}" for each in given),
    )
    wrapper = filled(
        "net.py",
        inputs="".join(f"    {described(each)},\n" for each in arguments.inputs),
        target=described(arguments.target) if arguments.target else "None",
        outputs="".join(f"    {described(each)},\n" for each in arguments.outputs),
        memory=plan.memory_bytes,
        weights=len(plan.weights),
        state=form.nbytes,
    )
    readme = filled(
        "README.md",
        triple=manifest["target"]["triple"],
        memory=f"{plan.memory_bytes:,}",
        weights=f"{len(plan.weights):,}",
        state=f"{form.nbytes:,}",
        columns=" then ".join(f"{each.count // rows} of `{each.variable}`" for each in given),
        rows=rows,
    )
    return {"main.c": main, "net.py": wrapper, "README.md": readme, "CMakeLists.txt": text_of("CMakeLists.txt")}


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
