"""Faults that training on a device meets: it is killed, its disk is full, its folder forbidden.

Runs are forks of this process, which loads nothing but what a device has: a fork starts in milliseconds, so that
hundreds of kills take minutes. A run that a fault ended is resumed, and has to end in the state of one that met none.
"""

from __future__ import annotations

import atexit
import errno
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pock_tvm as pock
from pock_tvm.device.checkpoint import newest_checkpoint, older_of
from pock_tvm.training.data import ArrayFile
from pock_tvm.training.fine_tuning import Checkpoints, fine_tune

RECIPE = pock.Recipe(3, 0.02)
KILLS_OF_A_RUN = 4
"""Kills until a run is left in peace, so that its end can be compared."""
NOBODY = 65534
MAKE = """
import sys, warnings, numpy as np, torch, pock_tvm as pock
from torch import nn
folder = sys.argv[1]
warnings.simplefilter("ignore")
torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
exported = torch.export.export(net, (torch.zeros(4, 192),))
torch.export.save(exported, f"{folder}/net.pt2")
pock.compile(exported, optimizer=pock.AdamW(), accumulate=2, check=False).save(f"{folder}/net.pock", slim=True)
rng = np.random.default_rng(0)
for name, count in (("train", 160), ("val", 40)):
    x = rng.standard_normal((count, 192)).astype("float32")
    np.savez(f"{folder}/{name}.npz", input=x, y=(x[:, 0] > 0) + (x[:, 1] > 0).astype(int))
"""
ANALYSE = """
import sys, pock_tvm as pock
if __name__ == "__main__":
    folder, output = sys.argv[1:]
    paths = (f"{folder}/{name}" for name in ("net.pt2", "train.npz", "val.npz"))
    pock.analyze(pock.Task(*paths, pock.Recipe(1, 0.02), ratios=(1.0,), seeds=1), output, workers=1)
"""


@dataclass
class Tally:
    """How often a fault was made, and what went wrong by it."""

    made: int = 0
    wrong: list[str] = field(default_factory=list)


class World:
    """A program and its data in a folder, and how a run of it ends that nothing disturbs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-c", MAKE, folder], check=True)
        start = time.perf_counter()
        place = self.place("straight")
        self.run(place)
        self.seconds = time.perf_counter() - start
        self.end = self.state(place)

    def place(self, name: str) -> Path:
        """An empty folder for a run."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def run(self, place: Path, every: int = 5, step: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Train in a fork, from the state in ``place`` if there is one, and return what it reports.

        ``step`` is called before the first step and after each.
        """
        return self.wait(self.begin(place, every, step), place)

    def begin(self, place: Path, every: int, step: Callable[[], None] = lambda: None) -> int:
        """Train in a fork; return its process."""
        process = os.fork()
        if process:
            return process
        try:
            report = self._report(place, every, step)
            os.seteuid(os.getuid())
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            place.with_suffix(".json").write_text(json.dumps(report))
        finally:
            os._exit(0)  # never back into the code of the parent

    def _report(self, place: Path, every: int, step: Callable[[], None]) -> dict[str, Any]:
        report: dict[str, Any] = {"steps": 0}

        def count(*_place: int) -> None:
            report["steps"] += 1
            step()

        try:
            training, validation = (ArrayFile(self.folder / f"{name}.npz", ["input"]) for name in ("train", "val"))
            trainer, path = pock.Trainer(self.folder / "net.pock", threads=1), place / "net.ckpt"
            resume = path.exists() or bool(older_of(path))
            if resume:
                trainer.restore(path)
            step()
            checkpoints = Checkpoints(path, every, 3, overwrite=not resume)
            options = {"validation": validation, "checkpoints": checkpoints, "resume": resume, "progress": count}
            report["finished"] = fine_tune(trainer, RECIPE, training, **options).finished
        except pock.PockError as error:
            report["refused"] = str(error)
        except Exception as error:
            report["error"] = repr(error)
        return report

    def wait(self, process: int, place: Path) -> dict[str, Any]:
        """Wait for a fork, and return what it reports: nothing if it was killed."""
        _, status = os.waitpid(process, 0)
        file = place.with_suffix(".json")
        if status or not file.exists():
            return {}
        report = json.loads(file.read_text())
        file.unlink()
        return report

    def state(self, place: Path) -> list[Any]:
        """Everything that the newest checkpoint holds, and the best one."""
        program, found = pock.Program.load(self.folder / "net.pock"), []
        for path in (place / "net.ckpt", Checkpoints(place / "net.ckpt").best):
            state = newest_checkpoint(path, program).state
            arrays = [
                *sorted(state.weights.items()),
                *((f"{each.slot} {each.of}", each.values) for each in state.states),
            ]
            found.append(([(name, array.tobytes()) for name, array in arrays], state.steps, state.updates, state.notes))
        return found

    def ends_well(self, place: Path, tally: Tally, what: str) -> None:
        """Resume a run, and compare its end."""
        report = self.run(place)
        if not report.get("finished"):
            tally.wrong.append(f"{what}: not resumed: {report}")
        elif self.state(place) != self.end:
            tally.wrong.append(f"{what}: resumed, it ended in another state")
        leftovers = [each.name for each in place.iterdir() if each.name.endswith(".tmp")]
        if leftovers:
            tally.wrong.append(f"{what}: {leftovers[0]} was left behind")


@functools.cache
def world() -> World:
    """The one program and its data that all faults share, for as long as this process lives."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    Path(folder.name).chmod(0o755)
    return World(Path(folder.name))


def kills(count: int, seed: int) -> Tally:
    """Kill runs at random moments: some of them train most of the time, some save after each step."""
    tally, rng, there = Tally(), random.Random(seed), world()
    while tally.made < count:
        place, every = there.place("killed"), rng.choice([1, 7])
        for _ in range(min(KILLS_OF_A_RUN, count - tally.made)):
            process = there.begin(place, every)
            time.sleep(rng.uniform(0, there.seconds))
            os.kill(process, signal.SIGKILL)
            tally.made += not there.wait(process, place)
        there.ends_well(place, tally, f"kill {tally.made}")
    return tally


def kills_of_an_analysis(count: int, seed: int) -> Tally:
    """Kill analyses again and again; each that comes to its end has to find what an undisturbed one does."""
    tally, rng, there = Tally(), random.Random(seed), world()
    whole, output = (there.folder / name for name in ("whole.json", "killed.json"))
    script = there.folder / "analyse.py"  # workers are processes, which import it
    script.write_text(ANALYSE)

    def begin(path: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(there.folder), str(path)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)

    def check(process: subprocess.Popen[bytes]) -> None:
        if process.returncode or json.loads(output.read_text()) != json.loads(whole.read_text()):
            tally.wrong.append(f"an analysis after {tally.made} kills found something else (exit {process.returncode})")

    start = time.perf_counter()
    begin(whole).wait()
    seconds = time.perf_counter() - start
    while tally.made < count:
        process = begin(output)
        try:
            process.wait(rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            tally.made += 1
            continue
        check(process)  # it came to its end: the next kills are of another
        output.unlink()
    process = begin(output)
    process.wait()
    check(process)
    return tally


def full_disks(count: int, seed: int) -> Tally:
    """Let one of the calls that write fail for want of space."""

    def fault(rng: random.Random, moment: int) -> Callable[[], None]:
        # Links are made from the second checkpoint on.
        name = rng.choice(["fsync", "rename", "write", *(["link"] if moment else [])])

        def fail(*_args: object, **_options: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def make() -> None:
            if name == "write":
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            elif name == "rename":
                Path.replace = fail  # type: ignore[method-assign, assignment]
            else:
                setattr(os, name, fail)
                shutil.copyfileobj = fail  # type: ignore[assignment]

        return make

    return _disk_faults(count, seed, fault)


def short_writes(count: int, seed: int) -> Tally:
    """Let the kernel write a part of what it is given, and refuse the rest."""

    def fault(rng: random.Random, _moment: int) -> Callable[[], None]:
        size = rng.randrange(1, 100_000)
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return _disk_faults(count, seed, fault)


def permissions(count: int, seed: int) -> Tally:
    """Forbid the folder to the run."""

    def fault(_rng: random.Random, _moment: int) -> Callable[[], None]:
        def make() -> None:
            if os.getuid():
                Path.cwd().chmod(0o555)
            else:
                os.seteuid(NOBODY)

        return make

    return _disk_faults(count, seed, fault)


def _disk_faults(count: int, seed: int, fault: Callable[[random.Random, int], Callable[[], None]]) -> Tally:
    """Make a fault after a random number of steps: it has to be one line, and to cost no state.

    One in four is there from the start: the run has to say so before its first step.
    """
    tally, rng, there = Tally(), random.Random(seed), world()
    while tally.made < count:
        moment, calls = 0 if tally.made % 4 == 0 else rng.randrange(1, 100), iter(range(1000))
        place, make = there.place("disk"), fault(rng, moment)

        def step(place: Path = place, make: Any = make, calls: Any = calls, moment: int = moment) -> None:
            if next(calls) == moment:
                os.chdir(place)
                make()

        report = there.run(place, step=step)
        place.chmod(0o755)
        tally.made += 1
        what = f"fault {tally.made} after {moment} steps"
        refused = report.get("refused", "")
        if "cannot be written" not in refused or "\n" in refused:
            tally.wrong.append(f"{what}: not one line: {report}")
        if not moment and report.get("steps"):
            tally.wrong.append(f"{what}: known after {report['steps']} steps")
        there.ends_well(place, tally, what)
    return tally
