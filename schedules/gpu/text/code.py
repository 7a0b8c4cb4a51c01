"""Code of lowered kernels: the text of their device functions, and their launches."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import tvm
from tvm import IRModule, tirx

from ..lower import launches_of, sizes_of
from ..traits import GpuTraits
from .cubin import machine_code
from .limits import check
from .spelling import with_bit_casts, with_bits, with_plain_functions, with_wide_constants
from .views import merge_views
from .wgsl import spread, wgsl_of

FINISHING = [
    tirx.transform.LowerWarpMemory(),
    tirx.transform.StmtSimplify(),
    tirx.transform.LowerIntrin(),
]
"""Passes on device functions before their text is written: ``tvm.s_tir.pipeline.finalize_device_passes``."""


def code_of(mod: IRModule, traits: GpuTraits, fallback: str = "") -> bytes:
    """Return the code of a lowered kernel as JSON: what :func:`described` returns, ``fallback``, why it does not have
    its rule's schedule, and for CUDA ``binary``, its machine code in base64. Errors: as :func:`described`."""
    record = described(mod, traits) | ({"fallback": fallback} if fallback else {})
    if traits.dialect == "cuda":
        record["binary"] = base64.b64encode(machine_code(record["text"], traits.architecture)).decode()
    return json.dumps(record).encode()


def described(mod: IRModule, traits: GpuTraits) -> dict[str, Any]:
    """Return the text of a lowered kernel's device functions and their launches.

    ``text``, in the target's dialect; ``launches``, each ``[symbol, grid, block, operands]`` as
    :class:`schedules.gpu.lower.Launch` has them; ``sizes`` of the operands in bytes, 0 where any number of them will
    do.

    Raises
    ------
    OverLimit
        The text is not one that every device of the dialect takes.
    """
    merged = [merge_views(mod[launch.symbol], launch) for launch in launches_of(mod)]
    device = tvm.transform.Sequential(FINISHING)(IRModule({launch.symbol: func for func, launch in merged}))
    if traits.dialect == "cuda":
        device = IRModule({name: with_wide_constants(func) for name, func in device.functions.items()})
    else:  # whose generators do not print all bits
        plain = {name: with_plain_functions(func, traits.dialect) for name, func in device.functions.items()}
        device = IRModule({name: with_bits(func) for name, func in plain.items()})
    if traits.dialect == "opencl":
        device = IRModule({name: with_bit_casts(with_wide_constants(func)) for name, func in device.functions.items()})
    launches = [launch for _, launch in merged]
    (target, *_) = (func.attrs["target"] for func in device.functions.values())
    if traits.dialect == "webgpu":
        text = "".join(wgsl_of(device[each.symbol], each.grid[0], target) for each in launches)
        launches = [dataclasses.replace(each, grid=spread(each.grid)) for each in launches]
    else:
        text = tvm.get_global_func(f"target.build.{traits.dialect}")(device, target).inspect_source()
    check(text, launches, traits)
    listed = [[each.symbol, each.grid, each.block, each.operands] for each in launches]
    return {"text": text, "launches": listed, "sizes": sizes_of(mod)}
