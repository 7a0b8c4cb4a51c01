"""Times the kernels of a step, one by one."""

from __future__ import annotations

import contextlib
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import NonFiniteError
from .library import CALL_KERNEL
from .program import kernel_calls

if TYPE_CHECKING:
    from .program import Program
    from .trainer import Data, Trainer


def example(program: Program) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Make inputs and a target of the right shapes and dtypes: normal numbers, ones for integers, target 0."""
    manifest, rng = program.manifest, np.random.default_rng(0)
    inputs = {}
    for spec in manifest["inputs"]:
        _, limit = program.index_limits.get(spec["name"], (0, 2))
        whole = np.full(spec["shape"], min(1, limit - 1))
        inputs[spec["name"]] = rng.standard_normal(spec["shape"]) if "float" in spec["dtype"] else whole
        inputs[spec["name"]] = inputs[spec["name"]].astype(spec["dtype"])
    target = program.tensor("target")
    return inputs, None if target is None else np.zeros(*target)


def clock_of(trainer: Trainer) -> str:
    """Return what times the kernels of a trainer's steps."""
    return trainer._library.clock


def profile(trainer: Trainer, x: Data, y: Any, *, repeat: int = 10) -> list[dict[str, Any]]:
    """Time every kernel of a training step, slowest first; the trainer's state stays as it was.

    Returns a record for each call: ``kernel``, ``ms`` (median of ``repeat`` steps), ``gflops`` and ``gbytes`` per
    second, ``share`` of the step's time, and the kernel's cost of the manifest. Copies of results are not timed.
    """
    program, memory, library = trainer.program, trainer._memory, trainer._library
    saved = {name: memory.read(array).copy() for name, array in trainer._arrays.items()}
    steps, spoiled = trainer.steps, trainer._spoiled
    with contextlib.suppress(NonFiniteError):  # the time of a kernel does not depend on the numbers
        trainer.step(x, y, lr=0.0)
    kernels = kernel_calls(program.manifest["entries"]["train_step"])
    addresses = library.numbers(trainer._tables["train_step"])
    times: list[list[float]] = [[] for _ in kernels]
    calls = [
        trainer.kernel_table(kernel, [addresses[at] + offset for at, offset in places]) for kernel, places in kernels
    ]
    for _ in range(repeat):
        for call, record in zip(calls, times, strict=True):
            record.append(library.seconds(CALL_KERNEL, call))
    for name, values in saved.items():
        trainer._fill(name, values)
    trainer.steps, trainer._spoiled = steps, spoiled
    medians = [statistics.median(record) for record in times]
    rows = []
    for (kernel, _), median in zip(kernels, medians, strict=True):
        cost = program.manifest["kernels"][kernel]
        rows.append(
            {
                "kernel": kernel,
                "ms": 1e3 * median,
                "gflops": cost["flops"] / median / 1e9,
                "gbytes": cost["bytes"] / median / 1e9,
                "share": median / sum(medians),
                **cost,
            }
        )
    return sorted(rows, key=lambda row: -row["ms"])
