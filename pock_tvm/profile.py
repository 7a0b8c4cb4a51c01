"""Where the time of a step goes, kernel by kernel."""

from __future__ import annotations

import ctypes
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm import IRModule

    from .trainer import Data, Trainer


def kernel_costs(mod: IRModule, entries: Sequence[str]) -> dict[str, dict[str, float]]:
    """Floating-point operations of each kernel of a lowered module, and bytes: every operand read or written once."""
    import tvm
    from tvm.s_tir.analysis import estimate_tir_flops

    costs = {}
    for var, func in mod.functions.items():
        if var.name_hint not in entries:
            sizes = [math.prod(int(extent) for extent in param.ty.shape) for param in func.params]
            widths = [tvm.DataType(str(param.ty.dtype)).bits // 8 for param in func.params]
            costs[var.name_hint] = {
                "flops": float(estimate_tir_flops(tvm.IRModule({"main": func}))),
                "bytes": float(sum(size * width for size, width in zip(sizes, widths, strict=True))),
            }
    return costs


def profile(trainer: Trainer, x: Data, y: Any, *, repeat: int = 10) -> list[dict[str, Any]]:
    """Time every kernel of a real training step, slowest first; the trainer's state stays as it was.

    Returns a record for each call: ``kernel``, ``ms`` (median of ``repeat`` steps), ``gflops`` and ``gbytes`` per
    second, ``share`` of the step.
    """
    import tvm

    program, saved = trainer.program, {name: array.copy() for name, array in trainer._arrays.items()}
    steps = trainer.steps
    trainer.step(x, y, lr=0.0)
    entry = program.manifest["entries"]["train_step"]
    addresses = trainer._tables["train_step"].numpy().tolist()
    times: list[list[float]] = [[] for _ in entry["calls"]]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "program.so"
        path.write_bytes(program.library)
        loaded = tvm.runtime.load_module(str(path))  # binds the runtime's functions
        library = ctypes.CDLL(str(path))
        calls = [
            (getattr(library, kernel), [ctypes.c_void_p(addresses[at] + offset) for at, offset in places])
            for kernel, places in entry["calls"]
        ]
        for _ in range(repeat):
            for (kernel, args), record in zip(calls, times, strict=True):
                start = time.perf_counter()
                kernel(*args)
                record.append(time.perf_counter() - start)
        del loaded
    for name, array in saved.items():
        trainer._arrays[name][...] = array
    trainer.steps = steps
    medians = [statistics.median(record) for record in times]
    rows = []
    for (kernel, _), seconds in zip(entry["calls"], medians, strict=True):
        cost = program.manifest["kernels"][kernel]
        rows.append(
            {
                "kernel": kernel,
                "ms": 1e3 * seconds,
                "gflops": cost["flops"] / seconds / 1e9,
                "gbytes": cost["bytes"] / seconds / 1e9,
                "share": seconds / sum(medians),
            }
        )
    return sorted(rows, key=lambda row: -row["ms"])
