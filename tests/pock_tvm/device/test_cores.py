"""Which CPUs threads run on, on machines as Linux describes them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pock_tvm.device.cores import order_cpus, quota


def machine(root: Path, files: dict[str, str]) -> Path:
    """Write files below a root, as the system shows them."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def siblings(*lists: str) -> dict[str, str]:
    """Describe CPUs, each with the list of those on its core."""
    folder = "sys/devices/system/cpu"
    return {f"{folder}/cpu{cpu}/topology/thread_siblings_list": each for cpu, each in enumerate(lists)}


def capacities(*numbers: int) -> dict[str, str]:
    """Describe the CPUs of an ARM, by their speeds."""
    return {f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": str(number) for cpu, number in enumerate(numbers)}


HYBRID = siblings("0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7") | {"sys/devices/cpu_atom/cpus": "4-7"}
"""Two fast cores with two CPUs each, and four slow ones of half the speed."""
V2, V1 = {"proc/self/cgroup": "0::/pod/box"}, {"proc/self/cgroup": "4:cpu,cpuacct:/docker/box\n3:memory:/"}


@pytest.mark.parametrize(
    ("files", "allowed", "order", "best"),
    [
        ({}, range(4), [0, 1, 2, 3], 4),
        ({}, [5, 9], [5, 9], 2),
        (siblings("0,2", "1,3", "0,2", "1,3"), range(4), [0, 1, 2, 3], 2),
        (siblings("0-1", "0-1", "2-3", "2-3"), range(4), [0, 2, 1, 3], 2),
        (siblings("0-1", "0-1", "2-3", "2-3"), [2, 3], [2, 3], 1),
        (siblings("0-1", "0-1") | {"proc/cpuinfo": "flags : fpu ht hypervisor lahf_lm"}, range(2), [0, 1], 2),
        (siblings(*map(str, range(64))), range(64), list(range(64)), 64),
        (HYBRID, range(8), [0, 2, 4, 5, 6, 7, 1, 3], 6),
        (HYBRID, [0, 1, 2, 3, 4], [0, 2, 4, 1, 3], 2),
        (HYBRID, [4, 5], [4, 5], 2),
        (capacities(400, 400, 400, 400, 1000, 1000, 1000, 1000), range(8), [4, 5, 6, 7, 0, 1, 2, 3], 4),
        (capacities(250, 250, 250, 250, 800, 800, 800, 1024), range(8), [7, 4, 5, 6, 0, 1, 2, 3], 4),
        (V2 | {"sys/fs/cgroup/pod/box/cpu.max": "250000 100000"}, range(4), [0, 1, 2, 3], 2),
        (V2 | {"sys/fs/cgroup/cpu.max": "50000 100000"}, range(4), [0, 1, 2, 3], 1),
    ],
    ids=[
        "nothing is said",
        "taskset",
        "siblings apart",
        "siblings side by side",
        "taskset to one core",
        "a virtual machine",
        "64 cores",
        "two kinds",
        "two kinds, few slow ones",
        "slow ones only",
        "big and little",
        "three kinds",
        "a container's time",
        "less than a CPU's time",
    ],
)
def test_threads_run_on_the_cpus_that_add_multiply_adds(
    tmp_path: Path, files: dict[str, str], allowed: list[int], order: list[int], best: int
) -> None:
    assert order_cpus(allowed, machine(tmp_path, files)) == (order, best)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, math.inf),
        (V2 | {"sys/fs/cgroup/pod/box/cpu.max": "max 100000"}, math.inf),
        (V2 | {"sys/fs/cgroup/pod/cpu.max": "150000 100000"}, 1.5),
        (V2 | {"sys/fs/cgroup/pod/cpu.max": "300000 100000", "sys/fs/cgroup/pod/box/cpu.max": "200000 100000"}, 2),
        (
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/docker/box/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/docker/box/cpu.cfs_period_us": "100000",
            },
            math.inf,
        ),
        (V2 | {"sys/fs/cgroup/cpu.max": "a damaged line"}, math.inf),
    ],
)
def test_a_control_group_limits_the_time_of_its_processes(tmp_path: Path, files: dict[str, str], cpus: float) -> None:
    assert quota(machine(tmp_path, files)) == cpus


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one CPU, or no such binding"
)
@pytest.mark.parametrize("is_bound", [False, True])
def test_threads_stay_on_the_cpus_that_the_process_may_use(is_bound: bool) -> None:
    """TVM's pool would take the first CPU of the machine, or bind the calling thread to one."""
    allowed = sorted(os.sched_getaffinity(0))[-1 if is_bound else 0 :]
    code = f"""import os
os.sched_setaffinity(0, {allowed})
from pock_tvm.device.runtime import THREADS, use_threads
found = []
for count in (THREADS, 1):
    use_threads(count)
    found.append(sorted(os.sched_getaffinity(0)))
workers = set().union(*(os.sched_getaffinity(int(each)) for each in os.listdir("/proc/self/task")))
print([*found, sorted(workers)])"""
    env = {name: value for name, value in os.environ.items() if name != "TVM_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([allowed] * 3)
