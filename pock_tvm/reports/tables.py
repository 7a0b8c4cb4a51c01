"""Tables of programs, schemes, obstacles and profiles, for the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from ..device.program import Program
from ..errors import Obstacle

if TYPE_CHECKING:
    from relay_passes.ir.trained_part import TrainedPart

    from ..tuning.result import TuningResult

MIB = 2**20


def summary(program: Program) -> str:
    """Summarise a program: inputs, loss, optimizer, target and options, one a line."""
    manifest = program.manifest
    inputs = ", ".join(f"{spec['name']} {tuple(spec['shape'])} {spec['dtype']}" for spec in manifest["inputs"])
    options = {name: value for name, value in manifest["options"].items() if value not in (None, 1, "frozen")}
    optimizer = ", ".join(
        f"{name} {value}" for name, value in manifest["optimizer"].items() if name != "kind" and value
    )
    lines = [
        f"inputs     {inputs}",
        f"loss       {manifest['loss']['kind']}",
        f"optimizer  {manifest['optimizer']['kind']}{f' ({optimizer})' if optimizer else ''}",
        f"target     {manifest['target']['triple']}",
    ]
    lines += [f"{name:<10} {value}" for name, value in options.items()]
    return "\n".join(lines)


def layer_table(program: Program) -> Table:
    """Build a table with one row a layer: trained parameters, FLOPs, bytes saved for the backward graph."""
    table = Table(title="layers", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("layer", "kind", "weight", "bias"):
        table.add_column(name, no_wrap=True)
    for name in ("forward\nMFLOP", "backward\nMFLOP", "saved\nKiB"):
        table.add_column(name, justify="right", no_wrap=True)
    layers = program.manifest["layers"]
    for layer in layers:
        trained = layer["weight"] not in ("frozen", "int8") or layer["bias"] == "full"
        table.add_row(
            *(escape(layer[name]) for name in ("name", "kind", "weight", "bias")),
            *_amounts(layer),
            style=None if trained else "dim",
        )
    table.add_section()
    total = {key: sum(layer[key] for layer in layers) for key in ("forward_flops", "backward_flops", "saved_bytes")}
    table.add_row("total", "", "", "", *_amounts(total))
    return table


def _amounts(layer: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        f"{layer['forward_flops'] / 1e6:.2f}",
        f"{layer['backward_flops'] / 1e6:.2f}" if layer["backward_flops"] else "-",
        f"{layer['saved_bytes'] / 1024:.1f}" if layer["saved_bytes"] else "-",
    )


def obstacle_table(obstacles: Sequence[Obstacle], worded: Callable[[str], str] = str) -> Table:
    """Build a table with one row an obstacle or warning; ``worded`` rephrases messages."""
    table = Table(title="obstacles", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    used = [name for name in ("layer", "operator", "parameter") if any(getattr(each, name) for each in obstacles)]
    for name in used:
        table.add_column(name, overflow="fold")
    table.add_column("what, and what to do", ratio=1)
    for each in obstacles:
        names = [escape(getattr(each, name)) for name in used]
        table.add_row("obstacle" if each.blocking else "warning", *names, escape(worded(str(each))))
    return table


def memory_table(program: Program) -> Table:
    """Build a table of a trainer's memory in MiB: its parts by purpose, their sum, and facts about the arena."""
    memory = program.memory()
    parts = {
        "parameters, as steps read them": memory["parameters"],
        "optimizer state": memory["optimizer_state"],
        "gradient sums": memory["gradient_sums"],
        "arena": memory["arena"],
        "constants": sum(array.nbytes for array in program.constants.values()),
    }
    facts = {"arena: scratch of kernels": memory["scratch"], "arena: lower bound": memory["lower_bound"]}
    table = Table(title="memory")
    table.add_column("what")
    table.add_column("MiB", justify="right")
    for rows in (parts, {"together": sum(parts.values())}, facts):
        for name, size in rows.items():
            if size:
                table.add_row(name, f"{size / MIB:.3f}")
        table.add_section()
    return table


def scheme_table(schemes: Mapping[str, Mapping[str, TrainedPart | None]], model: Any) -> Table:
    """Build a table with one row a scheme: the number of trained parameters and of their trained elements."""
    table = Table(title="schemes")
    for name in ("scheme", "parameters", "numbers", "share"):
        table.add_column(name, justify="left" if name == "scheme" else "right")
    total = sum(model.weights[name].size for name in model.trainable)
    for name, trained in schemes.items():
        numbers = sum(_size(model.weights[parameter], part) for parameter, part in trained.items())
        table.add_row(name, str(len(trained)), f"{numbers:,}", f"{100 * numbers / total:.1f} %")
    return table


def _size(weight: np.ndarray, part: TrainedPart | None) -> int:
    return weight.size if part is None else weight.size // weight.shape[part.axis] * len(part.indices)


def kernel_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Build a table with one row a kernel of a step, summed over its calls, slowest first."""
    table = Table(title="kernels of a step", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("calls", "ms", "% of step", "GFLOP/s", "GB/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("schedule", no_wrap=True)
    table.add_column("kernel", overflow="fold")
    calls: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        calls.setdefault(record["kernel"], []).append(record)

    def add_row(own: Sequence[Mapping[str, Any]], name: str) -> None:
        ms, share, flops, size = (sum(record[what] for record in own) for what in ("ms", "share", "flops", "bytes"))
        rates = [f"{flops / ms / 1e6:.0f}" if flops else "", f"{size / ms / 1e6:.1f}"]
        schedules = {_scheduled(record) for record in own}
        schedule = schedules.pop() if len(schedules) == 1 else ""
        table.add_row(str(len(own)), f"{ms:.3f}", f"{100 * share:.1f}", *rates, schedule, escape(name))

    for kernel, own in sorted(calls.items(), key=lambda item: -sum(record["ms"] for record in item[1])):
        add_row(own, kernel)
    table.add_section()
    add_row(records, f"{len(calls)} kernels")
    return table


def _scheduled(record: Mapping[str, Any]) -> str:
    """Say how a kernel is scheduled, by its record in a manifest."""
    gain = f" {record['gain']:.2f}x" if "gain" in record else ""
    return f"{record.get('schedule', '')}{gain}"


def schedule_table(program: Program) -> Table:
    """Build a table of how kernels are scheduled: a row for each tuned or estimated one with its gain, and the
    count of others.
    Choices above kernels that are not the defaults come first, with the gain of all of them.

    Programs that older versions compiled do not say.
    """
    table = Table(title="schedules of kernels", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("schedule", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("kernel", overflow="fold")
    step = program.manifest.get("step", {"choices": {}})
    for name, choice in step["choices"].items():
        if choice["decided"] != choice["default"]:
            gain = f"{step['gain']:.2f}x" if step["gain"] else ""
            table.add_row("tuned", gain, f"the step: {name} = {choice['decided']}")
    kernels = {name: record for name, record in program.manifest["kernels"].items() if "schedule" in record}
    for schedule in ("tuned", "estimated"):
        gains = {name: record["gain"] for name, record in kernels.items() if record["schedule"] == schedule}
        for name, gain in sorted(gains.items(), key=lambda item: -item[1]):
            table.add_row(schedule, f"{gain:.2f}x", escape(name))
    table.add_section()
    for schedule in ("default", "fallback"):
        count = sum(record["schedule"] == schedule for record in kernels.values())
        if count:
            table.add_row(schedule, "", f"{count} kernels")
    return table


def tuning_table(result: TuningResult) -> Table:
    """Build a table with one row a kernel that was measured, those with the largest share of a step first."""
    title = "kernels by estimates: nothing was measured" if result.estimated else "tuned kernels"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("% of step", "trials", "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kernel", overflow="fold")
    measured = [kernel for kernel in result.kernels if kernel.trials]
    for kernel in measured:
        gain = f"{kernel.gain:.2f}x" if kernel.decisions else "default"
        table.add_row(f"{100 * kernel.share:.1f}", str(kernel.trials), gain, escape(kernel.name))
    rest = [kernel for kernel in result.kernels if not kernel.trials]
    if rest:
        table.add_section()
        share = sum(kernel.share for kernel in rest)
        table.add_row(f"{100 * share:.1f}", "0", "default", f"{len(rest)} kernels that the search did not come to")
    return table
