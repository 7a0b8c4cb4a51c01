"""Tables of the machines that have short names."""

from __future__ import annotations

from rich import box
from rich.table import Table

from schedules.cpu import cpu_target
from schedules.gpu import gpu_target

from ..compiler.machines import CPUS, GPUS, MACHINES, Verified
from ..compiler.targets import HOST, resolve_target

TRAITS = (
    "vectors: registers x float32 numbers in each. FMA: multiply-adds that start in a cycle. latency: cycles until the "
    "next on the same sum. loads: those that start in a cycle. cache: a core's share."
)

GPU_TRAITS = (
    "cores: multiprocessors. warp: threads that run in step. threads, shared: most threads of a block, and the memory "
    "that they share. buffers: most that a kernel reads and writes."
)


def target_table() -> Table:
    """Build a table with one row a machine: what it is, and how far programs for it were tried."""
    table = _table("target", "machine", "cores", "tried")
    table.add_row(HOST, "this machine", _cores(HOST), Verified.HARDWARE)
    for name, machine in MACHINES.items():
        table.add_row(name, machine.title, _cores(name), machine.verified)
    return table


def traits_table() -> Table:
    """Build a table with one row a CPU: what schedules know of its core, and the memory of a microcontroller."""
    table = _table("target", caption=TRAITS)
    for name in ("vectors", "FMA", "latency", "loads", "cache", "flash", "RAM"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in (HOST, *CPUS):
        traits, machine = cpu_target(resolve_target(name)).traits, CPUS.get(name)
        memory = (None, None) if machine is None else (machine.flash_bytes, machine.ram_bytes)
        table.add_row(
            name,
            f"{traits.registers} x {traits.lanes}",
            str(traits.fma_ports),
            str(traits.fma_latency),
            f"{traits.load_ports:g}",
            _kib(traits.cache_bytes),
            *map(_kib, memory),
        )
    return table


def gpu_traits_table() -> Table:
    """Build a table with one row a GPU: what schedules know of it."""
    table = _table("target", "kernels", caption=GPU_TRAITS)
    for name in ("cores", "warp", "threads", "shared", "buffers"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, machine in GPUS.items():
        traits = gpu_target(resolve_target(name)).traits
        code = "PTX" if machine.is_oldest else "cubin"
        kernels = f"{code} {machine.architecture}" if machine.architecture else f"{machine.dialect} text"
        numbers = (traits.cores, traits.warp, traits.threads)
        table.add_row(name, kernels, *map(str, numbers), _kib(traits.shared_bytes), str(traits.arguments))
    return table


def _table(*columns: str, caption: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _cores(name: str) -> str:
    if name in GPUS:
        return GPUS[name].architecture
    attrs = resolve_target(name).attrs
    return f"{attrs['num-cores']} {attrs['mcpu']}"


def _kib(size: int | None) -> str:
    return "" if size is None else f"{size // 1024} KiB"
