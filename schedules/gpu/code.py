"""Code of lowered kernels: the text of their device functions, and their launches."""

from __future__ import annotations

import dataclasses
import json

import tvm
from tvm import IRModule, tirx

from .limits import check
from .lower import launches_of, sizes_of
from .spelling import with_bits
from .traits import GpuTraits
from .views import merge_views
from .wgsl import spread, wgsl_of

FINISHING = [
    tirx.transform.BF16StorageLegalize(),
    tirx.transform.LowerWarpMemory(),
    tirx.transform.StmtSimplify(),
    tirx.transform.LowerIntrin(),
]
"""Passes on device functions before their text is written: ``tvm.s_tir.pipeline.finalize_device_passes``."""


def code_of(mod: IRModule, traits: GpuTraits) -> bytes:
    """Return the text of a lowered kernel's device functions and their launches.

    JSON: ``text``, in the target's dialect; ``launches``, each ``[symbol, grid, block, operands]`` as
    :class:`schedules.gpu.lower.Launch` has them; ``sizes`` of the operands in bytes, 0 where any number of them will
    do.

    Raises
    ------
    OverLimit
        The text is not one that every device of the dialect takes.
    """
    merged = [merge_views(mod[launch.symbol], launch) for launch in launches_of(mod)]
    device = tvm.transform.Sequential(FINISHING)(IRModule({launch.symbol: func for func, launch in merged}))
    if traits.dialect != "cuda":  # which prints all bits
        device = IRModule({name: with_bits(func) for name, func in device.functions.items()})
    launches = [launch for _, launch in merged]
    (target, *_) = (func.attrs["target"] for func in device.functions.values())
    if traits.dialect == "webgpu":
        text = "".join(wgsl_of(device[each.symbol], each.grid[0], target) for each in launches)
        launches = [dataclasses.replace(each, grid=spread(each.grid)) for each in launches]
    else:
        text = tvm.get_global_func(f"target.build.{traits.dialect}")(device, target).inspect_source()
    check(text, launches, traits)
    listed = [[each.symbol, each.grid, each.block, each.operands] for each in launches]
    return json.dumps({"text": text, "launches": listed, "sizes": sizes_of(mod)}).encode()
