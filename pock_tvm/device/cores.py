"""Which CPUs of this machine are worth a thread, as Linux describes them. Elsewhere each is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path("/")
FAST, SLOW = 2, 1
"""Speeds of Intel's two kinds of cores, relative to each other: slow ones multiply and add half as much a cycle."""


def order_cpus(allowed: Iterable[int], root: Path = ROOT) -> tuple[list[int], int]:
    """Return CPUs in the order in which threads take them, and how many threads kernels best run on.

    First comes one CPU of each core, fast cores before slow ones; then those that share a core with one of these, which
    add no multiply-adds. Parallel loops are cut into equal parts, so that the slowest of ``n`` cores decides: the
    number is the one for which ``n`` times its speed is highest. It is at most the processor time that a container is
    given (:func:`quota`). Where the system does not say which CPUs share a core, none do; of unknown speed, all are
    alike. CPUs of a virtual machine count as cores, whatever it shows: its host moves them about.
    """
    system = root / "sys/devices"
    is_virtual = "hypervisor" in _text(root / "proc/cpuinfo").split()
    slow = _listed(_text(system / "cpu_atom/cpus"))
    speeds: dict[int, float] = {}
    cores: set[str] = set()
    second = []
    for cpu in sorted(allowed):
        about = system / f"system/cpu/cpu{cpu}"
        siblings = "" if is_virtual else _text(about / "topology/thread_siblings_list")
        if siblings and siblings in cores:
            second.append(cpu)
            continue
        cores.add(siblings)
        capacity = _text(about / "cpu_capacity")
        speeds[cpu] = float(capacity) if capacity.isdecimal() else SLOW if cpu in slow else FAST
    first = sorted(speeds, key=lambda cpu: -speeds[cpu])
    best = max(range(1, len(first) + 1), key=lambda count: count * speeds[first[count - 1]])
    return [*first, *second], max(1, int(min(best, quota(root))))


def quota(root: Path = ROOT) -> float:
    """Return the CPUs whose time this process may take by its control groups (versions 1 and 2); infinite without a
    limit."""
    mounted, least = root / "sys/fs/cgroup", math.inf
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            for folder in _upward(mounted, path):
                limit, _, period = _text(folder / "cpu.max").partition(" ")
                least = min(least, _share(limit, period))
        elif "cpu" in controllers.split(","):
            for folder in _upward(mounted / controllers, path):
                pair = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
                least = min(least, _share(*pair))
    return least


def _share(limit: str, period: str) -> float:
    """Return the CPUs of a limit, in microseconds of each period; infinite if it is no number (``max``, ``-1``)."""
    return int(limit) / int(period) if limit.isdecimal() and period.isdecimal() and int(period) else math.inf


def _upward(mounted: Path, path: str) -> Iterator[Path]:
    """Yield the folders of a control group and of those around it. A container may see its own as the outermost."""
    parts = [part for part in path.split("/") if part and part != ".."]
    for count in range(len(parts) + 1):
        yield mounted.joinpath(*parts[:count])


def _listed(text: str) -> set[int]:
    """Return the numbers of a list such as ``0-3,8``."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""
