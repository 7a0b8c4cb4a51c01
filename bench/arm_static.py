"""Compares the inner loops of ARM kernels with their core's multiply-add bound, by LLVM's model of the core: no board.

    python bench/arm_static.py [--target pi4] [--model mcunet] [--count 10] [--json out.json]

Of a network's training step, the kernels with most FLOPs are taken (FLOPs times calls), among those that the network's
products make. Each is scheduled and built as a program does. Its inner loops with most multiply-adds go through
`llvm-mca`, a hundred iterations long. The *bound* is the cycles of their multiply-adds alone, at the rate at which the
model starts independent ones. The *ratio* is bound by cycles: 1 is a core whose multiply-add units never wait.

The models take every load for a hit in the first cache, every branch for foretold, and a core's window as LLVM has it;
where LLVM has no model of a core, a near one stands in (`pock_tvm/tuning/static/mca.py`, which also says why none does
for the A53). An address that a broadcast load writes back counts as an addition of its own: in cyclone's model it is as
late as the data. MCUNet needs ../shared/data.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tvm
import typer
from rich.console import Console
from rich.table import Table
from step_models import NETWORKS, exported
from tvm import tirx

from pock_tvm.compiler import pipeline
from pock_tvm.compiler.kernel_builder import KernelBuilder
from pock_tvm.compiler.lowering import lower
from pock_tvm.compiler.machines import CPUS
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.compiler.training_options import Training
from pock_tvm.device.losses import Loss
from pock_tvm.device.optimizers import SGD
from pock_tvm.schemes.scheme import Scheme
from pock_tvm.tuning.static.mca import MODELS, region_cycles
from relay_passes.memory.call_list import KernelCall

TARGETS = ("pi4", "pi5", "m1")
GOAL = 0.8
FMA = re.compile(r"\s*fmla(\s+v\d+\.4s|\.4s)")
"""A multiply-add of four numbers, in Linux's spelling or in Apple's."""
INDEPENDENT = [f"fmla v{at}.4s, v24.4s, v25.s[0]" for at in range(24)]
"""Multiply-adds without an order among them: they run at the rate of the ports."""
LABEL = re.compile(r"\.L\w+:")
BRANCH = re.compile(r"\s*(?:b\.\w+|b|cbn?z|tbn?z)\s.*?(\.L\w+)$")


@dataclass(frozen=True)
class Row:
    """A kernel's inner loops against their bound."""

    target: str
    network: str
    kernel: str
    place: str
    calls: int
    share: float
    """Share of the FLOPs of a step."""
    multiply_adds: int
    """Vector multiply-adds in an iteration of the loops."""
    cycles: float
    bound: float

    @property
    def ratio(self) -> float:
        """Bound by cycles."""
        return self.bound / self.cycles


def inner_loops(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield the instructions of each innermost loop: from a label to a branch back to it, with no such pair inside."""
    labels: dict[str, int] = {}
    start = 0
    for at, line in enumerate(lines):
        if LABEL.match(line):
            labels[line.partition(":")[0]] = at
        branch = BRANCH.match(line)
        first = labels.get(branch[1], -1) if branch else -1
        if first >= start:  # later than the end of the last loop
            yield [line for line in lines[first : at + 1] if not LABEL.match(line)]
            start = at


def code_of(assembly: str) -> list[str]:
    """Return labels, in Linux's spelling, and instructions, without comments and directives."""
    lines = (re.sub(r"(?<!\.)\bLBB", ".LBB", re.sub(r"\s*(//|;).*", "", line)) for line in assembly.splitlines())
    return [line for line in lines if LABEL.match(line) or (line.startswith("\t") and not line.strip().startswith("."))]


def busiest(assembly: str) -> list[list[str]]:
    """Return the inner loops with most multiply-adds: all that have at least half as many as the largest."""
    loops = [(sum(map(bool, map(FMA.match, loop))), loop) for loop in inner_loops(code_of(assembly))]
    most = max((count for count, _ in loops), default=0)
    return [loop for count, loop in loops if most and 2 * count >= most]


def heaviest(network: str, target: tvm.target.Target) -> tuple[Any, list[tuple[str, int, float]]]:
    """Lower a network's training step. Return it, and kernel, calls and share of FLOPs, heaviest first."""
    batch = 1 if network == "mcunet" else None
    model = pipeline.import_model(exported(network, 1), batch=batch)
    training = Training(Scheme.full().resolve(model), vars(Loss("cross_entropy")), SGD().kernel, "frozen", 1)
    lowered = lower(model, training, KernelBuilder(target)).value
    calls = Counter(call.kernel for call in lowered.entries["train_step"].calls if isinstance(call, KernelCall))
    flops = {name: lowered.kernels[name]["flops"] * count for name, count in calls.items()}
    order = sorted(flops, key=flops.__getitem__, reverse=True)
    return lowered, [(name, calls[name], flops[name] / sum(flops.values())) for name in order]


def assembly_of(func: tirx.PrimFunc, builder: KernelBuilder) -> str:
    """Build a kernel as a program does, as text."""
    module = builder.kernel_target.lower(builder.kernel_target.schedule(func))
    return tvm.get_global_func("target.build.llvm")(module, builder.target).inspect_source("asm")


def measure(name: str, network: str, count: int) -> list[Row]:
    """Measure the ``count`` heaviest kernels of a network for a target."""
    target = resolve_target(name)
    rate = len(INDEPENDENT) / region_cycles([INDEPENDENT], target)[0]
    lowered, kernels = heaviest(network, target)
    builder, rows = KernelBuilder(target), []
    for kernel, calls, share in kernels[:count]:
        loops = busiest(assembly_of(lowered.module[kernel], builder))
        if not loops:
            raise SystemExit(f"{kernel}: no inner loop multiplies and adds vectors")
        fmas = sum(sum(map(bool, map(FMA.match, loop))) for loop in loops)
        took = sum(region_cycles(loops, target))
        rows.append(Row(name, network, kernel, lowered.places.get(kernel, ""), calls, share, fmas, took, fmas / rate))
    return rows


def table(name: str, rows: Sequence[Row]) -> Table:
    """Build a target's table."""
    model, near = MODELS[CPUS[name].cpu]
    found = Table(title=f"{name} ({CPUS[name].cpu}), by LLVM's {model}: {near}")
    for column in ("network", "kernel"):
        found.add_column(column)
    for column in ("calls", "% of FLOPs", "FMAs", "cycles", "bound", "ratio"):
        found.add_column(column, justify="right")
    for row in rows:
        numbers = (f"{100 * row.share:.1f}", str(row.multiply_adds), f"{row.cycles:.1f}", f"{row.bound:.1f}")
        kernel = re.sub(r"_[0-9a-f]{16}$", "", row.kernel)
        found.add_row(row.network, kernel, str(row.calls), *numbers, f"{row.ratio:.2f}")
    found.add_section()
    mean = sum(row.share for row in rows) / sum(row.share / row.ratio for row in rows)
    reached = f"{sum(row.ratio >= GOAL for row in rows)} of {len(rows)} reach {GOAL}; together"
    found.add_row("", reached, *[""] * 5, f"{mean:.2f}")
    return found


console = Console()


def main(
    target: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(TARGETS)}; may be repeated.")] = None,
    model: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(NETWORKS)}; may be repeated.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many kernels of a network")] = 10,
    json_output: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure the kernels, and print a table for each target."""
    records = []
    for name in target or TARGETS:
        rows = [row for network in model or ("mcunet", "distilbert") for row in measure(name, network, count)]
        console.print(table(name, rows))
        records += [asdict(row) | {"ratio": row.ratio, "model": MODELS[CPUS[name].cpu][0]} for row in rows]
    if json_output is not None:
        json_output.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    typer.run(main)
