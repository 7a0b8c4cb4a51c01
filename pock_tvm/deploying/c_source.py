"""The source form of a bundle's kernels: their scheduled and lowered loops as portable C11."""

from __future__ import annotations

import io
import textwrap
import zipfile
from collections.abc import Iterator, Mapping

import tvm
from tvm import tirx

from schedules.kernels import PORTABLE
from schedules.target import Target

from ..compiler.footprint.plan import called_kernels
from ..compiler.targets import kernel_target, resolve_target
from ..device.program import Program, kernel_calls
from .c_kernel import WIDTH, print_kernel
from .templates import filled, text_of

MOST_NAMES = 8
"""Most parameters that the comment over a kernel names."""
VECTORS, KERNELS = "pock_vector.h", "pock_kernels.h"


def kernel_sources(program: Program) -> dict[str, str]:
    """Print the kernels that a bundle calls as C11, by file name: one file each, and the two headers that they include.

    Each has the symbol of its object, and takes the same operands. A parallel loop runs through ``pock_launch``, which
    the rest of the bundle defines.

    Raises
    ------
    BuildError
        A kernel has a statement, an expression or a dtype without a form in C.
    """
    target = kernel_target(resolve_target(program.manifest["target"]["description"]))
    called = called_kernels(program)
    definitions = {name: func for name, func in kernel_definitions(program) if name in called}
    return sources(definitions, target, _named_operands(program))


def sources(kernels: Mapping[str, tirx.PrimFunc], target: Target, operands: Mapping[str, list[str]]) -> dict[str, str]:
    """Print unscheduled kernels by their names: see :func:`kernel_sources`. ``operands`` are for the comments."""
    files, prototypes = {}, []
    for name, definition in kernels.items():
        (lowered,) = target.lower(target.schedule(definition).with_attr(PORTABLE, True)).functions.values()
        printed = print_kernel(lowered)
        vectors = [f'#define POCK_LANES {lanes}\n#include "{VECTORS}"' for lanes in printed.lanes]
        head = [_comment(name, operands.get(name, [])), f'#include "{KERNELS}"', f'#include "{VECTORS}"', *vectors]
        files[f"{name}.c"] = "\n".join([*head, "", printed.definition])
        prototypes.append(f"{printed.prototype};")
    return files | {KERNELS: filled(KERNELS, kernels="\n".join(prototypes)), VECTORS: text_of(VECTORS)}


def kernel_definitions(program: Program) -> Iterator[tuple[str, tirx.PrimFunc]]:
    """Yield the kernels of a program by name, unscheduled."""
    with zipfile.ZipFile(io.BytesIO(program.kernels)) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".json"):
                yield name.removesuffix(".json"), tvm.ir.load_json(archive.read(name).decode())


def _named_operands(program: Program) -> dict[str, list[str]]:
    """Return what each kernel works on outside of the arena, over all its calls."""
    found: dict[str, dict[str, None]] = {}
    for entry in program.manifest["entries"].values():
        names = [tensor["name"] for tensor in entry["table"]]
        for kernel, operands in kernel_calls(entry):
            known = found.setdefault(kernel, {})
            # The arena follows the tensors of the table.
            known.update(dict.fromkeys(names[position] for position, _ in operands if position < len(names)))
    return {kernel: list(names) for kernel, names in found.items()}


def _comment(kernel: str, names: list[str]) -> str:
    """Print the comment over a kernel: what it computes, and of which layers."""
    what = kernel.rpartition("_")[0].replace("_", " ")
    more = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    text = f"{what}: {', '.join(names[:MOST_NAMES])}{more}" if names else what
    return textwrap.fill(f"/* {text.replace('*/', '* /')} */", WIDTH, subsequent_indent=" * ", break_long_words=False)
