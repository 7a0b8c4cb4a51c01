"""Phase 10 for GPUs: packs the kernels' texts and launches into what a device's back end loads."""

from __future__ import annotations

import base64
import io
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import IRModule, tirx

from relay_passes.memory.call_list import CallList, Check
from schedules.gpu.finite import all_finite

from ..device.contract import WORDS
from ..errors import PockWarning
from .build import Library, packed_kernels
from .kernel_builder import KernelBuilder

MOST_TOLD = 3
"""Most layers that a warning names."""


def build_launches(
    mod: IRModule,
    entries: Mapping[str, CallList],
    builder: KernelBuilder,
    places: Mapping[str, str],
    contract: Sequence[int] = (0,) * WORDS,
) -> Library:
    """Build the PrimFuncs of a module for a GPU. Errors: as :func:`pock_tvm.compiler.build.build_library`.

    Warns
    -----
    PockWarning
        Kernels do not take their own schedules, which are over a limit of devices.
    """
    functions = {var.name_hint: func for var, func in mod.functions.items() if isinstance(func, tirx.PrimFunc)}
    dtypes = {call.dtype for entry in entries.values() for call in entry.calls if isinstance(call, Check)}
    checks = {func.attrs["global_symbol"]: func for func in map(all_finite, sorted(dtypes))}
    codes = builder.codes([*functions.values(), *checks.values()], places)
    _tell_fallbacks(codes, places)
    definitions = {name: builder.definition_of(func) for name, func in functions.items()}
    kernels = packed_kernels(definitions, {name: codes[name] for name in definitions})
    return Library(pack_launches(codes, builder.target.kind.name, contract), kernels)


def _tell_fallbacks(codes: Mapping[str, bytes], places: Mapping[str, str]) -> None:
    """Name the layers of kernels that take a fallback schedule."""
    reasons = {name: json.loads(code).get("fallback") for name, code in codes.items()}
    told = [f"{places.get(name, name)} ({reason})" for name, reason in reasons.items() if reason]
    if told:
        more = f", and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
        warnings.warn(
            "kernels take a slower schedule where their own may be over the limits of a device, for "
            f"{', '.join(told[:MOST_TOLD])}{more}. What they compute is the same",
            PockWarning,
            stacklevel=2,
        )


def pack_launches(codes: Mapping[str, bytes], dialect: str, contract: Sequence[int] = (0,) * WORDS) -> bytes:
    """Pack the codes of kernels (``schedules.gpu.lower``) into a zip file that ``pock_tvm.device.gpu.library`` reads.

    It holds each kernel's text, or its machine code, under its name, and ``library.json`` with the rest: ``dialect``,
    ``contract`` and ``kernels``, in which each has its ``launches`` and ``sizes``.
    """
    kernels = {name: json.loads(code) for name, code in codes.items()}
    texts = {name: _loaded(kernel) for name, kernel in kernels.items()}
    head = {"dialect": dialect, "contract": list(contract), "kernels": kernels}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {"library.json": json.dumps(head), **texts}.items():
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _loaded(kernel: dict[str, Any]) -> str | bytes:
    """Take out of a kernel's record what a device loads."""
    text, binary = kernel.pop("text"), kernel.pop("binary", None)
    return text if binary is None else base64.b64decode(binary)
