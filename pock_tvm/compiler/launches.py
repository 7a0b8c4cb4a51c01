"""Phase 10 for GPUs: packs the kernels' texts and launches into what a device's back end loads."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence

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
    """Build the PrimFuncs of a module for a GPU.

    The library is a zip file (``pock_tvm.device.launches``): ``library.json`` with ``dialect``, ``contract``, and for
    each kernel its ``launches`` (``schedules.gpu.lower``); and each kernel's text. Errors: as
    :func:`pock_tvm.compiler.build.build_library`.
    """
    functions = {var.name_hint: func for var, func in mod.functions.items() if isinstance(func, tirx.PrimFunc)}
    dtypes = {call.dtype for entry in entries.values() for call in entry.calls if isinstance(call, Check)}
    checks = {func.attrs["global_symbol"]: func for func in map(all_finite, sorted(dtypes))}
    codes = builder.codes([*functions.values(), *checks.values()], places)
    kernels = {name: json.loads(code) for name, code in codes.items()}
    texts = {name: kernel.pop("text") for name, kernel in kernels.items()}
    head = {"dialect": builder.target.kind.name, "contract": list(contract), "kernels": kernels}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {"library.json": json.dumps(head), **texts}.items():
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    definitions = {name: builder.definition_of(func) for name, func in functions.items()}
    return Library(packed.getvalue(), packed_kernels(definitions, {name: codes[name] for name in definitions}))
