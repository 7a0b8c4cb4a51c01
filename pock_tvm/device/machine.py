"""What this machine is, and how many cores a program may use."""

from __future__ import annotations

import os
import platform

from .cores import order_cpus

IS_BOUND = hasattr(os, "sched_getaffinity")
"""Whether the system says which CPUs a process may use, and binds threads to them."""
CPUS, BEST = order_cpus(os.sched_getaffinity(0) if IS_BOUND else range(os.cpu_count() or 1))
"""CPUs that this process may use, in the order in which threads take them, and how many threads kernels best run on."""
CORES = len(CPUS)
"""CPUs that this process may use."""

# TVM's pool counts physical cores in a way of its own, and would use one thread of two.
_wanted = os.environ.setdefault("TVM_NUM_THREADS", str(BEST))
THREADS = min(int(_wanted), CORES) if _wanted.isdecimal() and int(_wanted) else BEST
"""Threads that kernels run on unless they are told otherwise."""


def machine_triple(triple: str | None = None) -> str:
    """Architecture and system of an LLVM triple, or of this machine, in one spelling: ``x86_64-linux``."""
    if triple is None:
        machine, system = platform.machine().lower(), platform.system().lower()
    else:
        machine = triple.split("-")[0].lower()
        system = next((name for name in ("linux", "darwin", "macos", "windows") if name in triple), "unknown")
    return (
        f"{ {'amd64': 'x86_64', 'arm64': 'aarch64'}.get(machine, machine) }-{ {'macos': 'darwin'}.get(system, system) }"
    )
