"""Measures the kernels of a training step that move bytes, against copies of as many bytes, and PyTorch.

    python bench/bytes.py [--quick] [--only softmax] [--rounds 9] [--json out.json]

Each case goes through the compiler's passes from phase 6 on (choice of kernels, fusion, plan), so its kernels are those
of a program. What counts are the bytes that have to be moved: operands read once, results written once, nothing in
between. Beside it stand the fastest of two copies of as many bytes (half read, half written) on as many threads:
PyTorch's, and a compiled ``-x``; that of a copy too large for the caches; and PyTorch's kernels for the same
computation, which allocate their results as they do in a step. PyTorch's sides all run before ours: threads of the two
libraries that wait for work would take each other's cores. Operands that fit the caches are there, for all sides. A
kernel that computes exponentials cannot follow a copy in the caches: its arithmetic takes longer. Medians.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tvm
import typer
from bytes_cases import CASES, Case, Operand
from rich.console import Console
from rich.table import Table
from tvm import IRModule, relax, tirx
from tvm.relax import op as R

from pock_tvm.compiler.kernel_builder import KernelBuilder
from pock_tvm.compiler.targets import HOST, resolve_target
from pock_tvm.device.machine import THREADS
from pock_tvm.device.memory import aligned_copy
from pock_tvm.device.runtime import load_library, pack_objects
from relay_passes import ChooseKernels, FuseGroups, ListCalls, NameKernels, PlanArena, ReserveScratch
from relay_passes.ir import bytes_of
from relay_passes.memory.call_list import CallList, call_list_of
from relay_passes.memory.lower_to_executor import executor

TURN = 2e-3
"""Seconds that a side runs in a turn, at least."""
LIMIT = 0.7
"""Share of the copy bandwidth to reach."""
BEYOND_CACHES = 2**28
"""Bytes of the copy that measures the memory."""
SEED = 0
Record = dict[str, Any]
Side = Callable[[int], None]
"""Runs a computation so many times."""
console = Console(width=150)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Kernels:
    """A case as a program would run it: its kernels, one after the other."""

    def __init__(self, case: Case, builder: KernelBuilder, arrays: list[np.ndarray]) -> None:
        module = _lowered(case, builder)
        calls = call_list_of(module["main"])
        kernels = {var.name_hint: func for var, func in module.functions.items() if isinstance(func, tirx.PrimFunc)}
        self.names = [call.kernel for call in calls.calls]  # type: ignore[union-attr] # there are no others
        objects = {f"{name}.o": code for name, code in builder.codes(list(kernels.values()), {}).items()}
        self._repeats = [1, 10, 100]
        for count in self._repeats:
            objects[f"executor_{count}.o"] = _entry(f"run_{count}", calls, count, builder)
        self._library = load_library(pack_objects(objects))
        self._held = self._memory(calls, arrays)
        self._table = self._library.table([array.ctypes.data for array in self._held])

    @staticmethod
    def _memory(calls: CallList, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Allocate what the table points to, and the arena behind it."""
        given = {f"operand{index}": array for index, array in enumerate(arrays)}
        constants = {name: aligned_copy(value.numpy()) for name, value in calls.constants.items()}
        known: Mapping[str, np.ndarray] = given | constants
        held = [
            known[tensor.name] if tensor.name in known else aligned_copy(np.zeros(tensor.shape, tensor.dtype))
            for tensor in calls.table
        ]
        return [*held, aligned_copy(np.zeros(max(1, calls.workspace.arena_bytes), "uint8"))]

    def run(self, times: int) -> None:
        """Run all kernels so many times."""
        for count in reversed(self._repeats):
            for _ in range(times // count):
                self._library.run(f"run_{count}", self._table)
            times %= count


def _lowered(case: Case, builder: KernelBuilder) -> IRModule:
    """Run phases 6 to 9 on a case."""
    target = builder.kernel_target
    with tvm.transform.PassContext(), builder.target:
        module = tvm.transform.Sequential(
            [
                ChooseKernels(["main"], target),
                relax.transform.RewriteDataflowReshape(),
                relax.transform.AnnotateTIROpPattern(),
                FuseGroups(target.traits.arguments),
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(["main"]),
                relax.transform.RewriteDataflowReshape(),
                NameKernels(["main"]),
            ]
        )(_graph(case))
        kernels = [func for func in module.functions.values() if isinstance(func, tirx.PrimFunc)]
        scratch = builder.scratch(kernels, {})
        results = 0 if case.in_place else None  # what is written in place is no result
        return tvm.transform.Sequential(
            [ReserveScratch(["main"], scratch), PlanArena("main"), ListCalls("main", results)]
        )(module)


def _graph(case: Case) -> IRModule:
    builder = relax.BlockBuilder()
    variables = [
        relax.Var(f"operand{index}", relax.TensorType(operand.shape, "int64" if operand.below else "float32"))
        for index, operand in enumerate(case.operands)
    ]
    with builder.function("main", variables, attrs={"num_input": 0}):
        with builder.dataflow():
            output = builder.emit_output(builder.normalize(case.build(builder, *variables)))
        builder.emit_func_output(output)
    return builder.get()


def _entry(name: str, calls: CallList, count: int, builder: KernelBuilder) -> bytes:
    """Build the object of an entry point that makes the calls ``count`` times."""
    repeated = dataclasses.replace(calls, calls=calls.calls * count)
    func = executor(repeated).with_attr("global_symbol", name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "entry.o"
        tirx.build(IRModule({name: func}), target=builder.target).write_to_file(str(path), "o")
        return path.read_bytes()


def _arrays(case: Case) -> list[np.ndarray]:
    rng = np.random.default_rng(SEED)

    def values(operand: Operand) -> np.ndarray:
        if operand.below:
            return rng.integers(0, operand.below, operand.shape)
        return np.abs(rng.standard_normal(operand.shape, dtype="float32"))

    return [aligned_copy(values(operand)) for operand in case.operands]


def _moved(case: Case) -> int:
    """Return the bytes that a case has to move."""
    return _held(case) if case.moved is None else case.moved


def _held(case: Case) -> int:
    """Return the bytes of operands and results."""
    main = _graph(case)["main"]
    return sum(map(bytes_of, main.params)) + (0 if case.in_place else bytes_of(main.body.body))


def _torch_side(function: Callable[..., Any], arrays: list[np.ndarray]) -> Side:
    tensors = [torch.from_numpy(array) for array in arrays]

    def run(times: int) -> None:
        for _ in range(times):
            function(*tensors)

    return run


@functools.cache
def _copies(size: int) -> list[Side]:
    """Return the two copies that move ``size`` bytes in all."""
    count = max(16, size // 8)
    source, target = (torch.from_numpy(aligned_copy(np.zeros(count, "float32"))) for _ in range(2))

    def copied(times: int) -> None:
        for _ in range(times):
            target.copy_(source)

    case = Case("copy", str(size), (Operand((count,)),), lambda _builder, x: R.negative(x))
    return [copied, Kernels(case, _builder(), [source.numpy()]).run]


@functools.cache
def _builder() -> KernelBuilder:
    return KernelBuilder(resolve_target(HOST))


def _times(sides: Mapping[str, Side], rounds: int) -> dict[str, float]:
    """Return the median seconds of a run of each side; sides take turns."""
    counts = {}
    for name, side in sides.items():
        side(1)
        start = time.perf_counter()
        side(1)
        counts[name] = max(1, min(100, math.ceil(TURN / (time.perf_counter() - start))))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            side(1)
            start = time.perf_counter()
            side(counts[name])
            found[name].append((time.perf_counter() - start) / counts[name])
    return {name: statistics.median(each) for name, each in found.items()}


def prepare(case: Case) -> tuple[Kernels, dict[str, Side], dict[str, Side]]:
    """Build the sides of a case: its kernels, those with them, and PyTorch's."""
    arrays = _arrays(case)
    kernels = Kernels(case, _builder(), arrays)
    copied, negated = _copies(min(_moved(case), _held(case)))
    theirs = {"copied": copied}
    if case.torch is not None:
        theirs["torch"] = _torch_side(case.torch, arrays)
    return kernels, {"ours": kernels.run, "negated": negated}, theirs


def record_of(case: Case, kernels: Kernels, seconds: Mapping[str, float], memory: float) -> Record:
    """Make the record of a case: microseconds, GB/s, and the shares of the copies' (``memory``: bytes a second of the
    large one)."""
    moved = _moved(case)
    copy = min(_moved(case), _held(case)) / min(seconds["copied"], seconds["negated"])
    return {
        "group": case.group,
        "case": case.name,
        "mebibytes": moved / 2**20,
        "kernels": kernels.names,
        "us": 1e6 * seconds["ours"],
        "ours": moved / seconds["ours"] / 1e9,
        "copy": copy / 1e9,
        "torch": moved / seconds["torch"] / 1e9 if "torch" in seconds else None,
        "share": moved / seconds["ours"] / copy,
        "share of memory": moved / seconds["ours"] / memory,
    }


def table_of(records: list[Record]) -> Table:
    """Make the table of measured cases."""
    table = Table("kernel", "size", "MiB", "us", "GB/s", "copy", "PyTorch", "share of copy", "of memory's")
    for record in records:
        table.add_row(
            record["group"],
            record["case"],
            f"{record['mebibytes']:.2f}",
            f"{record['us']:.1f}",
            f"{record['ours']:.1f}",
            f"{record['copy']:.1f}",
            "" if record["torch"] is None else f"{record['torch']:.1f}",
            f"{record['share']:.0%}",
            f"{record['share of memory']:.0%}",
        )
    return table


@app.command()
def main(
    only: Annotated[str, typer.Option(help="Groups of cases that begin so")] = "",
    quick: Annotated[bool, typer.Option(help="Take the subset that needs less than a minute")] = False,
    rounds: Annotated[int, typer.Option(help="Turns of each side")] = 9,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the records")] = None,
) -> None:
    """Measure the cases, and print a table."""
    cases = [case for case in CASES if case.group.startswith(only) and (case.quick or not quick)]
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        prepared = [prepare(case) for case in cases]
        large = dict(zip(("copied", "negated"), _copies(BEYOND_CACHES), strict=True))
        theirs = [_times(sides, rounds) for *_, sides in prepared]
        seconds = [_times({name: side}, rounds)[name] for name, side in large.items()]
        ours = [_times(sides, rounds) for _, sides, _ in prepared]
    memory = BEYOND_CACHES / min(seconds)
    records = [
        record_of(case, kernels, mine | other, memory)
        for case, (kernels, *_), mine, other in zip(cases, prepared, ours, theirs, strict=True)
    ]
    console.print(table_of(records))
    reached = [sum(record[name] >= LIMIT for record in records) for name in ("share", "share of memory")]
    console.print(
        f"{THREADS} threads, memory's copy {memory / 1e9:.1f} GB/s; at least {LIMIT:.0%} of the copy: {reached[0]}, of "
        f"memory's: {reached[1]}, of {len(records)}"
    )
    if json_path is not None:
        json_path.write_text(json.dumps({"memory": memory, "threads": THREADS, "records": records}, indent=1))


if __name__ == "__main__":
    app()
