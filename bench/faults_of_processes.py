"""Long use, and a damaged cache: trainers side by side, dropped ones, threads that end, many steps."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from faults_of_state import Tally, world

import pock_tvm as pock

TRAINERS = 8
STEPS = 50
"""Steps until a trainer is compared with one that ran alone, and begins again."""
ALLOWED = {"threads": 0, "files": 0, "mappings": 8, "memory": 4 << 20}
"""Growth of a process that counts as none: the allocator keeps some pages."""


def held() -> dict[str, int]:
    """Return the threads, files, mappings and bytes of private memory of this process."""
    gc.collect()
    process = Path("/proc/self")
    rollup = dict(line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:])
    kilobytes = sum(int(rollup[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
    return {
        "threads": len(list((process / "task").iterdir())),
        "files": len(list((process / "fd").iterdir())),
        "mappings": len((process / "maps").read_text().splitlines()),
        "memory": kilobytes << 10,
    }


def _grown(use: Callable[[], None], count: int, warm: int) -> Tally:
    """Use something ``warm`` times, then ``count`` times, and compare what the process holds."""
    for _ in range(warm):
        use()
    before = held()
    for _ in range(count):
        use()
    after = held()
    return Tally(
        count,
        [
            f"{name} grew from {before[name]} to {after[name]} in {count} rounds"
            for name, most in ALLOWED.items()
            if after[name] > before[name] + most
        ],
    )


def _trainer(threads: int = 1) -> pock.Trainer:
    return pock.Trainer(world().folder / "net.pock", threads=threads)


def _batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((4, 192)).astype("float32"), rng.integers(0, 3, 4)


def _losses(seed: int) -> list[float]:
    trainer = _trainer()
    return [trainer.step(*_batch(seed * STEPS + number), lr=0.01) for number in range(STEPS)]


def _until(end: float, seed: int, expected: list[float]) -> tuple[int, int]:
    """Train again and again; return how often, and how often the losses were others."""
    rounds = wrong = 0
    while time.monotonic() < end:
        wrong += _losses(seed) != expected
        rounds += 1
    return rounds, wrong


def trainers_in_threads(seconds: int, seed: int) -> Tally:
    """Let trainers train in threads for some time: each has to learn what it learns alone."""
    seeds, tally, end = range(seed, seed + TRAINERS), Tally(), time.monotonic() + seconds
    alone = [_losses(each) for each in seeds]

    def run(number: int) -> None:
        rounds, wrong = _until(end, seeds[number], alone[number])
        tally.made += rounds
        tally.wrong += [f"trainer {number} learned something else in a thread"] * wrong

    threads = [threading.Thread(target=run, args=(number,)) for number in range(TRAINERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def trainers_in_processes(seconds: int, seed: int) -> Tally:
    """Let trainers train in forks of a process that has trained, for some time."""
    seeds, tally, end = range(seed, seed + TRAINERS), Tally(), time.monotonic() + seconds
    alone = [_losses(each) for each in seeds]
    reports = [world().folder / f"process.{number}" for number in range(TRAINERS)]
    children = []
    for number, report in enumerate(reports):
        child = os.fork()
        if not child:
            try:
                report.write_text("{} {}".format(*_until(end, seeds[number], alone[number])))
            finally:
                os._exit(0)
        children.append(child)
    for number, (child, report) in enumerate(zip(children, reports, strict=True)):
        os.waitpid(child, 0)
        if not report.exists():
            tally.wrong.append(f"process {number} ended early")
            continue
        rounds, wrong = map(int, report.read_text().split())
        tally.made += rounds
        tally.wrong += [f"trainer {number} learned something else in a process"] * wrong
    return tally


def dropped_trainers(count: int, seed: int) -> Tally:
    """Create trainers, use them once, and drop them."""

    def use() -> None:
        trainer = _trainer(2)
        trainer.step(*_batch(seed), lr=0.01)

    return _grown(use, count, 10)


def ended_threads(count: int, seed: int) -> Tally:
    """Use one trainer from threads that end."""
    trainer = _trainer(2)

    def use() -> None:
        thread = threading.Thread(target=lambda: trainer.step(*_batch(seed), lr=0.0001))
        thread.start()
        thread.join()

    return _grown(use, count, 10)


def many_steps(count: int, seed: int) -> Tally:
    """Take many steps with one trainer."""
    trainer = _trainer(2)

    def use() -> None:
        trainer.step(*_batch(seed), lr=0.0001)

    return _grown(use, count, 100)


def flipped_cache_bits(count: int, seed: int) -> Tally:
    """Flip a bit of the kernel cache, and compile: the program has to be the same."""
    import torch

    tally, rng, folder = Tally(), random.Random(seed), world().folder / "cache"
    exported = torch.export.load(world().folder / "net.pt2")
    before, os.environ["POCK_CACHE"] = os.environ.get("POCK_CACHE"), str(folder)
    try:
        whole = pock.compile(exported, check=False)
        files = sorted(folder.glob("kernels/*/*.kernel"))
        for _ in range(count):
            file = rng.choice(files)
            damaged = bytearray(file.read_bytes())
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                again = pock.compile(exported, check=False)
            tally.made += 1
            if (again.library, bytes(again.kernels)) != (whole.library, bytes(whole.kernels)):
                tally.wrong.append(f"a flipped bit of {file.name} changed the program")
    finally:
        os.environ.pop("POCK_CACHE")
        os.environ |= {} if before is None else {"POCK_CACHE": before}
    return tally
