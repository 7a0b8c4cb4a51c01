"""Tuning database: what was measured of kernels' schedules on one kind of machine, and what was chosen.

A folder with one file a target (:func:`target_key`), a JSON object a line. Lines are appended and never changed. Each
holds its target, TVM's version and a checksum of its own, so that files merge by concatenation and a damaged line costs
only itself. Records:

- ``kernel``: a kernel's definition, for what learns from the file;
- ``trial``: decisions, with the seconds that were measured, or why there are none;
- ``choice``: decisions that a program was found faster with. The latest one of a kernel holds.

Choices above kernels have trials and choices, too, under the key of a step (:func:`step_key`) in place of a kernel's.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import os
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import tvm
from tvm import tirx
from tvm.target import Target

from relay_passes.kernels.name_kernels import structural_hash
from schedules.decisions import DecisionError, Decisions, Option
from schedules.spaces import SpaceError, space_of
from schedules.target import Target as KernelTarget

from ..device.files import writing
from ..device.form import Each, Maybe, check_form, is_real
from ..device.reading import MIB, read_file, reading
from ..errors import DatabaseError, PockWarning, WriteError
from .kernel_cache import sources

ESTIMATES = ".estimates.jsonl"
"""End of the name of a file of estimates. Its ``seconds`` and ``reference`` are a model's cycles: only their ratio
counts."""
MOST_BYTES = 512 * MIB
"""Most bytes of a file that is read."""


def _is_option(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, list) and all(isinstance(each, int) for each in value))


HEAD = {"record": str, "kernel": str, "target": str, "tvm": str, "version": str, "time": is_real}
FORMS: dict[str, dict[str, Any]] = {
    "kernel": {"name": str, "rule": str, "shapes": [[int]], "definition": str},
    "trial": {
        "decisions": Each(_is_option),
        "seconds": Maybe(is_real),
        "reference": Maybe(is_real),
        "failure": Maybe(str),
    },
    "choice": {"decisions": Each(_is_option), "gain": is_real, "schedule": str},
}
"""Forms of records, by kind."""


@dataclass(frozen=True)
class Trial:
    """Measurement of one schedule."""

    decisions: Decisions
    """Every decision that the schedule makes, those that are defaults among them."""
    seconds: float | None
    """Seconds of a run; None if it failed."""
    reference: float | None
    """Seconds of a run of the default schedule, measured in turns with this one."""
    failure: str | None = None
    """Why there is no time: the schedule cannot be built, crashes, hangs or computes something else."""

    @property
    def speedup(self) -> float:
        """How many times as fast as the default it is; 0 if it failed."""
        return self.reference / self.seconds if self.seconds and self.reference else 0.0


@dataclass(frozen=True)
class Tuned:
    """Decisions that were found faster than the default within steps."""

    decisions: Decisions
    gain: float
    """Seconds of the default over theirs."""
    estimated: bool = field(default=False, kw_only=True)
    """Whether both are a model's estimates, and nothing was measured."""


@dataclass(frozen=True)
class TunedStep(Tuned):
    """Decisions of choices above kernels (:mod:`pock_tvm.compiler.step_choices`) that made a step faster."""

    kernels: str
    """Hash of the kernels that they led to (:func:`kernels_key`), or :data:`ANY`: if it is another now, they are not
    used."""


ANY = ""
"""Hash of kernels that are not known yet."""


@runtime_checkable
class Records(Protocol):
    """Schedules and choices to compile with."""

    def tuned(self, func: tirx.PrimFunc, target: KernelTarget) -> Tuned | None:
        """Return what was chosen for a kernel; None for its default."""

    def tuned_step(self, key: str) -> TunedStep | None:
        """Return what was chosen for a step, by its key (:func:`step_key`); None for the defaults."""


@dataclass(frozen=True)
class _Choice:
    """Decisions chosen for a kernel or a step: none for the default."""

    tuned: Tuned
    schedule: str
    """Structural hash of the scheduled kernel, or hash of a step's kernels."""
    version: str
    """State of the schedules' sources that scheduled it."""
    time: float


@dataclass(frozen=True)
class KernelRecord:
    """Definition of a kernel that was tuned."""

    name: str
    rule: str
    """Rule of its largest product, as ``relay_passes.analysis.kernel_costs`` has it; empty without one."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of its operands and results."""
    definition: str
    """Its loops before scheduling, as ``tvm.ir.load_json`` reads them."""


def target_key(target: Target) -> str:
    """Name the kind of machine that records hold for: architecture, core, features and number of cores.

    The operating system does not matter, nor how the target was written down.
    """
    attrs = target.attrs
    if target.kind.name != "llvm":
        return "-".join([str(target.kind.name), str(attrs.get("arch") or "any")])
    triple = str(attrs.get("mtriple") or tvm.target.codegen.llvm_get_system_triple())
    parts = [triple.partition("-")[0], str(attrs.get("mcpu") or "generic")]
    features = sorted(map(str, attrs.get("mattr") or []))
    if features:
        parts.append(hashlib.sha256(",".join(features).encode()).hexdigest()[:8])
    return "-".join([*parts, f"{int(attrs.get('num-cores') or 1)}cores"])


def kernel_key(func: tirx.PrimFunc) -> str:
    """Return the structural hash of a kernel, whatever its name."""
    return f"{structural_hash(func.without_attr('global_symbol')):016x}"


class Database:
    """Records of one target in a folder. It reads the file once; what it adds is on the disk when a method returns.

    ``must_exist``: whether a folder without records for the target is an error, as it is to compile with.
    ``estimated``: whether it is the records of estimates, which have a file of their own (:data:`ESTIMATES`). What they
    say is taken for kernels of which nothing was measured.

    Raises
    ------
    DatabaseError
        The folder has records for other targets only, or the file is of another version of TVM.
    """

    def __init__(
        self, folder: str | os.PathLike[str], target: Target, *, must_exist: bool = False, estimated: bool = False
    ) -> None:
        self.folder, self.target, self.key = Path(folder), target, target_key(target)
        estimates = self.folder / f"{self.key}{ESTIMATES}"
        self.path = estimates if estimated else self.folder / f"{self.key}.jsonl"
        self._estimates = Database(folder, target, estimated=True) if not estimated and estimates.exists() else None
        self.skipped = 0
        """Damaged lines."""
        self.kernels: dict[str, KernelRecord] = {}
        """Kernels by structural hash (:func:`kernel_key`), as in the following."""
        self.trials: dict[str, dict[str, Trial]] = {}
        """Trials of this state of the schedules' sources, by kernel and then by decisions as text."""
        self.older: dict[str, list[Trial]] = {}
        """Trials of other states, by kernel: what to try first."""
        self._chosen: dict[str, _Choice] = {}
        if self.path.exists():
            self._read()
        elif must_exist and self._estimates is None:
            others = sorted(path.stem for path in self.folder.glob("*.jsonl"))
            there = f"it has some for {', '.join(others)}" if others else "it has none at all"
            raise DatabaseError(
                f"'{self.folder}' has no records for {self.key}: {there}. Tune a program of this target (pock tune), "
                "or leave the database out"
            )

    def tuned(self, func: tirx.PrimFunc, target: KernelTarget) -> Tuned | None:
        """Return what was chosen for a kernel; None if nothing was, the default was, or the schedules have changed so
        that the decisions make another kernel now."""
        found = self._chosen.get(kernel_key(func))
        if found is None and self._estimates is not None:
            estimate = self._estimates.tuned(func, target)
            return None if estimate is None else replace(estimate, estimated=True)
        if found is None or not found.tuned.decisions:
            return None
        if found.version != sources() or space_of(found.tuned.decisions) is not None:  # its source is not among ours
            try:
                if kernel_key(target.schedule(func, found.tuned.decisions)) != found.schedule:
                    return None
            except SpaceError as error:
                raise DatabaseError(f"'{self.path}': {error}: install it, or compile without the database") from error
            except DecisionError:
                return None
        return found.tuned

    def tuned_step(self, key: str) -> TunedStep | None:
        """Return what was chosen for a step; None if nothing was, or the defaults were."""
        found = self._chosen.get(key)
        if found is None or not found.tuned.decisions:
            return None
        return TunedStep(found.tuned.decisions, found.tuned.gain, found.schedule)

    def warn(self) -> None:
        """Say how many records are damaged."""
        if self.skipped:
            count = "1 damaged record is" if self.skipped == 1 else f"{self.skipped} damaged records are"
            warnings.warn(f"'{self.path}': {count} left out, and kept in the file", PockWarning, stacklevel=4)

    def add_kernel(self, key: str, kernel: KernelRecord) -> None:
        """Record a kernel, unless it is recorded already."""
        if key not in self.kernels:
            packed = base64.b64encode(zlib.compress(kernel.definition.encode(), 9)).decode()
            self._append("kernel", key, vars(kernel) | {"definition": packed})
            self.kernels[key] = kernel

    def add_trial(self, key: str, trial: Trial) -> None:
        """Record a trial of a kernel."""
        self._append("trial", key, vars(trial) | {"decisions": dict(trial.decisions)})
        self.trials.setdefault(key, {})[text_of(trial.decisions)] = trial

    def choose(self, key: str, tuned: Tuned, scheduled: tirx.PrimFunc) -> None:
        """Record how a kernel is to be scheduled; without decisions by default."""
        self._choose(key, tuned, kernel_key(scheduled))

    def choose_step(self, key: str, tuned: TunedStep) -> None:
        """Record the choices above kernels for a step; without decisions the defaults."""
        self._choose(key, tuned, tuned.kernels)

    def _choose(self, key: str, tuned: Tuned, schedule: str) -> None:
        values = {"decisions": dict(tuned.decisions), "gain": tuned.gain, "schedule": schedule}
        self._take(self._append("choice", key, values))

    def _append(self, kind: str, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write a record at the end of the file, whole or not at all, and return it."""
        head = {"record": kind, "kernel": key, "target": self.key, "tvm": tvm.__version__, "version": sources()}
        record = head | {"time": round(time.time(), 3)} | dict(values)
        line = f"{json.dumps(record | {'crc32': _checksum(record)})}\n".encode()
        try:
            with writing(self.path):
                self._write(line)
        except WriteError as error:
            raise WriteError(f"{error}. What it holds is kept: once there is room, the same command goes on") from error
        return record

    def _write(self, line: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file, _locked(file.fileno()):
            size = file.seek(0, os.SEEK_END)
            if size and not _ends_a_line(self.path):  # somebody was killed while writing
                line = b"\n" + line
            try:
                if file.write(line) != len(line):
                    raise OSError(28, "No space left on device")
            except OSError:
                file.truncate(size)
                raise

    def _read(self) -> None:
        with reading(DatabaseError, f"'{self.path}' cannot be read ({{}})"):
            lines = read_file(self.path, MOST_BYTES).splitlines()
        for line in filter(None, lines):
            record = _record(line)
            if record is None:
                self.skipped += 1
                continue
            if record["target"] != self.key:
                name = self.path.name.replace(self.key, record["target"], 1)
                raise DatabaseError(f"'{self.path}' holds records for {record['target']}: rename it to '{name}'")
            if record["tvm"] != tvm.__version__:
                raise DatabaseError(
                    f"'{self.path}' was measured with TVM {record['tvm']}, and this is {tvm.__version__}, which "
                    "schedules and builds otherwise: tune into another folder"
                )
            self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        key, kind = record["kernel"], record["record"]
        if kind == "kernel":
            shapes = tuple(map(tuple, record["shapes"]))
            self.kernels[key] = KernelRecord(record["name"], record["rule"], shapes, _unpacked(record["definition"]))
            return
        decisions = _decisions(record["decisions"])
        if kind == "choice":
            tuned = Tuned(decisions, record["gain"])
            choice = _Choice(tuned, record["schedule"], record["version"], record["time"])
            if key not in self._chosen or self._chosen[key].time <= choice.time:
                self._chosen[key] = choice
            return
        trial = Trial(decisions, record["seconds"], record["reference"], record["failure"])
        if record["version"] == sources():
            self.trials.setdefault(key, {})[text_of(decisions)] = trial
        else:
            self.older.setdefault(key, []).append(trial)


def records_of(folder: str | os.PathLike[str], target: Target) -> Database:
    """Return a folder's records for a target, to compile with.

    Raises
    ------
    DatabaseError
        As :class:`Database`, also for a folder without records for the target.

    Warns
    -----
    PockWarning
        Records are damaged, and left out.
    """
    database = Database(folder, target, must_exist=True)
    database.warn()
    return database


def text_of(decisions: Decisions) -> str:
    """Return decisions as text that is the same for equal ones."""
    return json.dumps(dict(decisions), sort_keys=True)


def _decisions(values: Mapping[str, Any]) -> dict[str, Option]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _record(line: bytes) -> dict[str, Any] | None:
    """Return a line's record, or None if it is damaged."""
    try:
        record = json.loads(line)
        check_form(record, HEAD | {"crc32": str}, "record")
        found = record.pop("crc32")
        check_form(record, FORMS[record["record"]], "record")
        if record["record"] == "kernel":
            _unpacked(record["definition"])
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error):
        return None
    numbers = [record.get(name) for name in ("seconds", "reference", "gain")]
    sound = all(each is None or (math.isfinite(each) and each > 0) for each in numbers)
    return record if sound and found == _checksum(record) else None


def _unpacked(definition: str) -> str:
    return zlib.decompress(base64.b64decode(definition)).decode()


def _checksum(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Let one process at a time append, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
