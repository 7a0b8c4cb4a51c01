"""Measured traits of this machine, kept in a file beside the kernel cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm.target import Target

from schedules.cpu.traits import measured_key

from ..device.files import replacing
from ..errors import PockError
from .kernel_cache import VARIABLE, cache_root

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Measurements of a machine (:mod:`pock_tvm.calibrating`). Per core, with all cores at work, unless said otherwise.

    Cycles are those of a chain of integer operations: of the core's clock while it measured.
    """

    gigahertz: float
    """Cycles in a nanosecond."""
    fma_rate: float
    """Vector multiply-adds that start in a cycle."""
    fma_latency: float
    """Cycles from a multiply-add to the next one on the same accumulator."""
    load_rate: float
    """Vector loads from the first cache in a cycle."""
    broadcast_rate: float
    """Loads in a cycle of single numbers that go to all lanes. As many as vector loads: each costs one."""
    gflops: tuple[float, float]
    """Billions of float32 operations a second in multiply-adds: of one core that works alone, of all cores."""
    first_cache: int
    """First-level data cache, in bytes."""
    second_cache: int
    """A core's share of the second-level cache, in bytes."""
    last_cache: int
    """Cache that cores share, in bytes, as far as one core that works alone reads it fast."""
    second_cache_cores: int
    """Cores that share a second-level cache."""
    second_cache_rate: float
    """Bytes that the second-level cache delivers in a cycle."""
    line: int
    """Bytes of a cache line, as the operating system says."""
    copy_rate: tuple[float, float]
    """Billions of bytes copied a second, from memory to memory: by one core that works alone, by all cores."""
    region: float
    """Microseconds that a parallel loop of no work takes, on all cores."""

    @property
    def traits(self) -> dict[str, int | float]:
        """The traits of schedules that it decides, by their names in :class:`schedules.cpu.traits.CpuTraits`."""
        return {
            "fma_ports": max(1, round(self.fma_rate)),
            "fma_latency": max(1, round(self.fma_latency)),
            "load_ports": max(0.5, round(2 * self.load_rate) / 2),
            "cache_bytes": self.second_cache,
            "cache_stream": max(1, round(self.second_cache_rate / 16)) * 16,
        }


def calibrated(host: Target, calibration: Calibration) -> Target:
    """Return this machine's target with what was measured of it, as keys of TVM's target. So a program's target says
    what its schedules were chosen by, wherever it is compiled again."""
    keys = [str(key) for key in host.keys]
    measured = [measured_key(name, value) for name, value in calibration.traits.items()]
    return Target({"kind": host.kind.name, "keys": [*keys, *measured], **dict(host.attrs.items())})


def load_calibration(host: Target) -> Calibration:
    """Load the calibration of this machine.

    Raises
    ------
    PockError
        There is no calibration of this machine, or its file cannot be read.
    """
    path = _path(host)
    try:
        record = json.loads(path.read_text())
        if record["format"] == FORMAT and record["target"] == str(host):
            measured: dict[str, Any] = record["measured"]
            pairs = {name: tuple(value) for name, value in measured.items() if isinstance(value, list)}
            return Calibration(**(measured | pairs))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PockError(f"the calibration '{path}' cannot be read ({error}): run 'pock calibrate' again") from error
    raise PockError("this machine was not calibrated: run 'pock calibrate', with nothing else at work")


def save_calibration(host: Target, calibration: Calibration) -> Path:
    """Keep a calibration of this machine for the target ``calibrated``, and return its file."""
    path = _path(host)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, "target": str(host), "measured": dataclasses.asdict(calibration)}
    with replacing(path) as file:
        file.write(json.dumps(record, indent=1).encode())
    return path


def _path(host: Target) -> Path:
    root = cache_root()
    if root is None:
        raise PockError(f"{VARIABLE}=off keeps no calibration: set it to a folder")
    return root / "calibrations" / f"{hashlib.sha256(str(host).encode()).hexdigest()[:16]}.json"
