"""Measures this machine's cores, caches and threads with the micro-kernels of :mod:`.kernels`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule
from tvm.target import Target

from schedules.cpu import cpu_target
from schedules.cpu.traits import CpuTraits

from ..compiler.calibration import Calibration
from ..device.machine import THREADS
from ..device.runtime import use_threads
from ..errors import PockError
from . import kernels
from .kernels import APART, UNROLLED, Body

SECONDS = 0.02
"""Time for which a kernel is timed again and again. The fastest counts: whatever else the machine does only adds
time."""
MOST_REPEATS = 1000
TURNS, PAUSE = 5, 0.01
"""Turns of a kernel on several cores, and the seconds between them: for a turn, the system may leave two threads on one
core."""
CHAINS = (4, 8, 12, 16, 24)
"""Vectors of sums of multiply-adds: the most that start in a cycle show where these hide the latency."""
ROUNDS = 20_000
"""Iterations of a kernel that is timed in registers, and steps of a chase: some 10 to 100 us."""
FIRST = 16 * 1024
"""Bytes that lie in the first-level cache."""
SIZES = tuple(factor * 2**power for power in range(12, 25) for factor in (2, 3))
"""Bytes of memory that is read to find the caches: 8 KiB to 48 MiB."""
LARGE = SIZES[-1]
"""Bytes that lie in no cache."""
LINE, PAGE = 64, 4096
SLOWER = 1.6
"""Ratio of two sizes' latencies that tells one cache from the next."""
SHARE = 0.6
"""Share of a cache's bandwidth with which its last part is read, where data of neighbours lies in it, too."""


def calibrate(host: Target) -> Calibration:
    """Measure this machine, in about ten seconds, on as many cores as kernels run on. ``host`` is its target.

    Raises
    ------
    PockError
        The measurements contradict each other.
    """
    bench = _Bench(host, cpu_target(host).traits, THREADS)
    lanes, cycle = bench.traits.lanes, bench.cycle()
    numbers, floats = np.zeros(LARGE // 4, "int32"), np.zeros(2 * lanes, "float32")
    chain = bench.seconds(kernels.multiply_adds(1, lanes, ROUNDS), floats) / ROUNDS
    counts = [count for count in CHAINS if count + 2 <= bench.traits.registers]
    adds = {n: bench.seconds(kernels.multiply_adds(n, lanes, ROUNDS), floats) / (n * ROUNDS) for n in counts}
    best = min(adds, key=adds.__getitem__)
    together = bench.seconds(kernels.multiply_adds(best, lanes, ROUNDS), floats, workers=bench.cores) / (best * ROUNDS)
    vectors, each = FIRST // (4 * lanes), FIRST // 4
    loading = bench.seconds(kernels.loads(each, lanes, 50), numbers) / (50 * vectors)
    broadcasting = bench.seconds(kernels.loads(each, lanes, 5, broadcast=True), numbers) / (5 * each)
    alone, sharing = (bench.latencies(workers) for workers in (1, bench.cores))
    (first, second_alone), (_, second) = cache_sizes(alone), cache_sizes(sharing)
    if second < 2 * first:
        raise PockError(
            f"a cache of {second} bytes was found behind one of {first}: something else was at work. Run "
            "'pock calibrate' again when this machine does nothing else"
        )
    streams = bench.streams(numbers, second)
    return Calibration(
        gigahertz=1e-9 / cycle,
        fma_rate=cycle / adds[best],
        fma_latency=chain / cycle,
        load_rate=cycle / loading,
        broadcast_rate=cycle / broadcasting,
        gflops=(2e-9 * lanes / adds[best], 2e-9 * lanes * bench.cores / together),
        first_cache=first,
        second_cache=second,
        last_cache=max(size for size, rate in streams.items() if rate >= SHARE * streams[2 * second]),
        second_cache_cores=max(1, min(bench.cores, second_alone // second)),
        second_cache_rate=streams[second // 2] * cycle,
        line=_line(),
        copy_rate=(bench.copy_rate(1), bench.copy_rate(bench.cores)),
        region=1e6 * (bench.seconds(kernels.touch(), numbers, workers=bench.cores) if bench.cores > 1 else 0),
    )


@dataclass(frozen=True)
class _Bench:
    """Builds a micro-kernel for a machine, and times it."""

    host: Target
    traits: CpuTraits
    cores: int

    def seconds(self, body: Body, data: np.ndarray, *, workers: int = 1, starts: Sequence[int] = ()) -> float:
        """Return how long a kernel takes at its fastest. ``starts`` are the first results of the workers."""
        func = kernels.kernel("kernel", body, size=data.size, dtype=str(data.dtype), cores=self.cores, workers=workers)
        built = tvm.compile(IRModule({"kernel": func}), self.host, tir_pipeline="pock_schedule")
        result = np.zeros(self.cores * APART, data.dtype)
        result[: len(starts) * APART : APART] = starts
        operands = [tvm.runtime.tensor(array) for array in (data, result)]
        use_threads(self.cores)
        first = self._fastest(built, operands, 3)
        repeats = max(1, min(MOST_REPEATS, int(SECONDS / first)))
        found = [first]
        for _ in range(TURNS if workers > 1 else 1):
            found.append(self._fastest(built, operands, repeats))
            time.sleep(PAUSE)
        return min(found)

    def _fastest(self, built: Any, operands: Sequence[Any], repeats: int) -> float:
        timed = built.mod.time_evaluator("kernel", tvm.cpu(), number=1, repeat=repeats)
        return float(min(timed(*operands).results))

    def cycle(self) -> float:
        """Return the seconds of a cycle."""
        return self.seconds(kernels.cycles(ROUNDS), np.ones(3, "int32")) / (2 * UNROLLED * ROUNDS)

    def latencies(self, workers: int) -> dict[int, float]:
        """Return the seconds of a load that waits for the one before, by the bytes that each worker reads."""
        found = {}
        for size in (size for size in SIZES if size <= MOST_CHASED):
            ring = _ring(size)
            data = np.zeros(workers * size // 4, "int32")
            starts = [worker * size // 4 for worker in range(workers)]
            for start in starts:
                data[start : start + len(ring)] = ring + start
            found[size] = self.seconds(kernels.chase(ROUNDS), data, workers=workers, starts=starts) / ROUNDS
        return found

    def streams(self, data: np.ndarray, second: int) -> dict[int, float]:
        """Return the bytes a second that one core reads in order, by the bytes that it reads: from half of the
        second-level cache on."""
        found = {}
        block = 4 * kernels.SUMS * self.traits.lanes
        for size in (size for size in SIZES if size >= second // 2):
            rounds = max(1, 2**20 // size)
            read = size // block * block
            body = kernels.loads(read // 4, self.traits.lanes, rounds)
            found[size] = rounds * read / self.seconds(body, data)
        return found

    def copy_rate(self, workers: int) -> float:
        """Return the billions of bytes a second that workers copy together, from memory to memory."""
        elements = max(LARGE // 8 // workers, MOST_CHASED // 4) // self.traits.lanes * self.traits.lanes
        data = np.zeros(2 * elements * workers, "int32")
        body = kernels.copy(elements, self.traits.lanes, 1)
        return 1e-9 * 4 * elements * workers / self.seconds(body, data, workers=workers)


MOST_CHASED = 2**23
"""Most bytes of a core that are chased through, and fewest that it copies: a second-level cache is smaller."""


def _ring(size: int) -> np.ndarray:
    """Return int32 [size / 4]: the index of the next element to read, so that one of each cache line is read.

    Pages and the lines of a page are in random order, which no prefetcher knows; a page is read as a whole, or its
    address would take longer to translate than its lines take to come.
    """
    generator = np.random.default_rng(0)
    lines = np.arange(size // LINE).reshape(-1, PAGE // LINE)
    order = generator.permuted(generator.permutation(lines), axis=1).reshape(-1) * (LINE // 4)
    ring = np.zeros(size // 4, "int32")
    ring[order] = np.roll(order, -1)
    return ring


def cache_sizes(latencies: dict[int, float]) -> tuple[int, int]:
    """Return the sizes of the first and the second cache: the largest before the latency leaves its plateau.

    ``latencies``: of a load, by the bytes that are read. The second plateau is taken as reached at twice the first
    cache, and is the first where none is seen.
    """
    sizes = sorted(latencies)
    first = _end_of_plateau(sizes, latencies)
    larger = [size for size in sizes if size >= 2 * first]
    return first, _end_of_plateau(larger, latencies) if larger else first


def _end_of_plateau(sizes: Sequence[int], latencies: dict[int, float]) -> int:
    """Return the largest size that is read as fast as the fastest one. A disturbed measurement is passed by."""
    plateau = SLOWER * min(latencies[size] for size in sizes)
    return max(size for size in sizes if latencies[size] <= plateau)


def _line() -> int:
    """Return the bytes of a cache line, as the system says; where it says nothing, those of most machines."""
    name = "SC_LEVEL1_DCACHE_LINESIZE"
    return (os.sysconf(name) if name in getattr(os, "sysconf_names", {}) else 0) or LINE
