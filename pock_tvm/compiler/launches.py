"""Phase 10 for GPUs: packs the kernels' texts and launches into what a device's back end loads."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import IRModule, tirx

from relay_passes.memory.call_list import CallList, Check
from schedules.gpu.finite import all_finite

from ..device.contract import WORDS
from .build import Library, packed_kernels
from .kernel_builder import KernelBuilder


def build_launches(
    mod: IRModule,
    entries: Mapping[str, CallList],
    builder: KernelBuilder,
    places: Mapping[str, str],
    contract: Sequence[int] = (0,) * WORDS,
) -> Library:
    """Build the PrimFuncs of a module for a GPU. Errors: as :func:`pock_tvm.compiler.build.build_library`."""
    functions = {var.name_hint: func for var, func in mod.functions.items() if isinstance(func, tirx.PrimFunc)}
    dtypes = {call.dtype for entry in entries.values() for call in entry.calls if isinstance(call, Check)}
    checks = {func.attrs["global_symbol"]: func for func in map(all_finite, sorted(dtypes))}
    codes = builder.codes([*functions.values(), *checks.values()], places)
    definitions = {name: builder.definition_of(func) for name, func in functions.items()}
    kernels = packed_kernels(definitions, {name: codes[name] for name in definitions})
    return Library(pack_launches(codes, builder.target.kind.name, contract), kernels)


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
