"""Table of the machines that have short names."""

from __future__ import annotations

from rich import box
from rich.table import Table

from schedules.cpu import cpu_target

from ..compiler.machines import MACHINES, Verified
from ..compiler.targets import HOST, resolve_target

NOTE = (
    "vectors: registers x float32 numbers in each. FMA: multiply-adds that start in a cycle, and cycles until the next "
    "on the same sum. loads: those that start in a cycle. cache: a core's share, in KiB. memory: flash and RAM, in KiB."
)


def target_table() -> Table:
    """Build a table with one row a machine: its core, what schedules know of it, and how far it was tried."""
    table = Table(title="targets", caption=NOTE, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("target", no_wrap=True)
    table.add_column("machine")
    table.add_column("cores", no_wrap=True)
    for name in ("vectors", "FMA", "loads", "cache", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verified", overflow="fold")
    table.add_row(*_columns(HOST, "this machine"), "", Verified.HARDWARE)
    for name, machine in MACHINES.items():
        sizes = [str(size // 1024) for size in (machine.flash_bytes, machine.ram_bytes) if size is not None]
        table.add_row(*_columns(name, machine.title), ", ".join(sizes), machine.verified)
    return table


def _columns(name: str, title: str) -> list[str]:
    """Return the columns of a target that its traits fill."""
    target = resolve_target(name)
    traits = cpu_target(target).traits
    return [
        name,
        title,
        f"{traits.cores} {target.attrs['mcpu']}",
        f"{traits.registers} x {traits.lanes}",
        f"{traits.fma_ports}, {traits.fma_latency}",
        f"{traits.load_ports:g}",
        f"{traits.cache_bytes // 1024}",
    ]
