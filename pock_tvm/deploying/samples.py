"""Samples in a bundle's code: what ``main.c`` trains on at a device without files of data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..compiler.footprint.plan import TARGET
from ..device.program import Program
from ..errors import PockError
from ..training.data import ArrayFile
from .c_types import float_text, integer_text
from .network_code import Argument, given_arguments
from .templates import BOARDS, filled

NUMBERS_A_LINE = 12


def sample_texts(program: Program, samples: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return ``samples.h`` and ``samples.c``: batches by argument, as :func:`samples_of` returns them."""
    arguments = given_arguments(program)
    batches = len(next(iter(samples.values())))
    declarations = "\n".join(f"extern const {_declared(each)};" for each in arguments)
    return {
        "samples.h": filled("samples.h", BOARDS, batches=batches, declarations=declarations),
        "samples.c": _samples_code(arguments, samples),
    }


def sample_names(program: Program) -> str:
    """Return the arguments of a step in ``main.c``: those of one batch."""
    return ", ".join(f"sample_{each.variable}[batch]" for each in given_arguments(program))


def read_samples(program: Program, path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` file that a program trains on: each input by its name, and the target as ``y``.

    Raises
    ------
    DataError
        The file is missing or damaged, or lacks an array.
    """
    inputs = [each["name"] for each in program.manifest["inputs"]]
    return ArrayFile(path, inputs, has_target=program.tensor(TARGET) is not None).arrays


def samples_of(program: Program, given: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Return the batches that ``main.c`` trains on, by argument: an axis of batches, then the argument's own shape.

    ``given`` holds the arrays of an ``.npz`` file of ``pock train``, with a whole number of batches along the first
    axis. None: one batch of zeros.

    Raises
    ------
    PockError
        An array is missing, or is of another shape.
    """
    found = {}
    for each in given_arguments(program):
        name = "y" if each.name == TARGET else each.name
        array = np.zeros(each.shape, each.dtype) if given is None else given.get(name)
        if array is None:
            raise PockError(f"the samples lack '{name}': they hold {', '.join(given or ()) or 'nothing'}")
        batch, rest = each.shape[0] if each.shape else 1, each.shape[1:]
        if not len(array) or len(array) % batch or array.shape[1:] != rest:
            raise PockError(
                f"the samples of '{name}' have the shape {array.shape}, and the network takes batches of "
                f"{each.shape}: give a whole number of batches, one after the other"
            )
        if not np.can_cast(array.dtype, each.dtype, "same_kind"):
            raise PockError(f"the samples of '{name}' are {array.dtype}, and the network takes {each.dtype}")
        found[each.name] = array.astype(each.dtype).reshape(-1, *each.shape)
    if len({len(array) for array in found.values()}) != 1:
        raise PockError("the samples of some arguments are more than those of others: give as many of each")
    return found


def _declared(each: Argument) -> str:
    return f"{each.c_type} sample_{each.variable}[BATCHES][{each.count}]"


def _samples_code(arguments: list[Argument], samples: Mapping[str, np.ndarray]) -> str:
    lines = ['#include "samples.h"', ""]
    for each in arguments:
        lines.append(f"const {_declared(each)} = {{")
        for batch in samples[each.name]:
            numbers = [_number(number) for number in batch.ravel()]
            rows = (numbers[at : at + NUMBERS_A_LINE] for at in range(0, len(numbers), NUMBERS_A_LINE))
            lines += ["  {", *(f"    {', '.join(row)}," for row in rows), "  },"]
        lines.append("};")
    return "\n".join(lines) + "\n"


def _number(number: np.generic) -> str:
    if number.dtype.kind == "f":
        return float_text(float(number), str(number.dtype))
    return f"UINT64_C({number})" if number.dtype == np.uint64 else integer_text(int(number))
