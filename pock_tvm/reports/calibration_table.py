"""Table of what was measured of this machine."""

from __future__ import annotations

from rich import box
from rich.table import Table

from ..compiler.calibration import Calibration

CAPTION = (
    "Cycles are those of the clock while measuring. Schedules take the traits in the last column if they are asked to: "
    "--target calibrated."
)


def calibration_table(found: Calibration, cores: int) -> Table:
    """Build a table with one row a measurement. ``cores``: those at work in the second number of a pair."""
    table = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left", padding=(0, 1, 0, 0))
    for name in ("measured", "", "trait"):
        table.add_column(name, overflow="fold")
    pair = f"on 1, {cores} cores"
    rows: dict[str, tuple[str, str]] = {
        "clock": (f"{found.gigahertz:.2f} GHz", ""),
        "multiply-adds of vectors": (f"{found.fma_rate:.2f} a cycle", "fma_ports"),
        "latency of a multiply-add": (f"{found.fma_latency:.2f} cycles", "fma_latency"),
        f"multiply-adds in registers, {pair}": (_pair(found.gflops, 0, "GFLOP/s"), ""),
        "loads of vectors, first cache": (f"{found.load_rate:.2f} a cycle", "load_ports"),
        "loads of one number to all lanes": (f"{found.broadcast_rate:.2f} a cycle", ""),
        "first cache": (_kib(found.first_cache), ""),
        "second cache, a core's share": (_kib(found.second_cache), "cache_bytes"),
        "cores that share a second cache": (str(found.second_cache_cores), ""),
        "loads from the second cache": (f"{found.second_cache_rate:.1f} bytes a cycle", "cache_stream"),
        "last cache, as one core reads it": (_kib(found.last_cache), ""),
        "cache line (system)": (f"{found.line} bytes", ""),
        f"copy in memory, {pair}": (_pair(found.copy_rate, 1, "GB/s"), ""),
        "start of a parallel loop": (f"{found.region:.2f} us", ""),
    }
    for name, (text, trait) in rows.items():
        table.add_row(name, text, f"{trait} = {found.traits[trait]}" if trait in found.traits else "")
    return table


def _pair(values: tuple[float, float], digits: int, unit: str) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values) + f" {unit}"


def _kib(size: int) -> str:
    return f"{size // 1024} KiB"
