"""Measures one training step: compiled programs against PyTorch with default settings and PyTorch at its best.

    python bench/train_step.py [--model mcunet --batch 1] [--scheme full] [--threads 2] [--peers all] [--json out.json]

Each system has a process of its own. They take turns of a few steps, on the same threads; their first losses must
agree. Float32, SGD with momentum 0.9, the same batch each step. Both sides train the same parameters, except that
PyTorch computes the gradient of a whole weight where a program computes that of some of its channels. `torch` is eager
PyTorch with default settings. `torch-best` is the fastest of that and of three variants with BatchNorm folded, the
fused optimizer and a tuned allocator: eager, channels last, and `torch.compile`.

The machine is virtual. Its cores move between real ones, which share a cache at times, and a program then runs up to
2.5 times as fast. So the bandwidth between cores is measured before and after every burst of steps. A burst counts if
both were near the best, for every system alike (but at least the best two of each system).

*Planned* is the memory that a system's own account gives to a step beside the weights. *RSS* is the peak of the
process, and *added* what of it is neither import nor weights: for PyTorch, what lies above the process that has built
the network.

GFLOP/s count the products with weights of a program's step, forward and backward: the same number for all systems.
Winograd's algorithm does fewer; what it saves is counted as done. Below a table stands, for each ratio that is to be
reached, the share of peak at which our step would reach it in this run. MCUNet needs ../shared/data.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated

import typer
from rich.console import Console
from step_models import NETWORKS
from step_table import Record, needed_shares, table, title_of

BURST = 0.4
"""Seconds of steps in a turn."""
ARENA_LIMIT = 1.05
"""Largest ratio of an arena to its lower bound, the peak of live bytes, without a remark."""
QUIET = 0.6
"""Share of the best bandwidth between cores below which they share no cache, or share it with others."""
PATIENCE = 10
"""Largest number of delays of a burst, half a second each, for want of bandwidth."""
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
BEST = ("eager", "channels-last", "compiled")
PEERS = {"jax": "pip install jax", "onnxruntime": "pip install --no-deps onnxruntime-training flatbuffers Cerberus"}
SYSTEMS = ("ours", "torch", "torch-best", *PEERS)


console = Console(width=150, log_path=False)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Schemes(StrEnum):
    """The schemes to measure."""

    full = "full"
    pockengine = "pockengine"
    both = "both"

    @property
    def names(self) -> list[str]:
        """The names of the schemes."""
        return ["full", "pockengine"] if self is Schemes.both else [self.value]


class Peers(StrEnum):
    """The systems to measure besides PyTorch."""

    none = "none"
    all = "all"


class WorkerError(Exception):
    """A worker has ended early; the message is its last line of output."""


class Worker:
    """A system in a process of its own; see :mod:`step_workers`."""

    def __init__(self, job: Record, threads: int) -> None:
        names = ("TVM_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        env |= dict.fromkeys(names, str(threads)) | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        if job.get("variant") in BEST:
            env |= TUNED
        root = str(Path(__file__).resolve().parents[1])
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, __file__, "worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
        )
        try:
            self.info = self.ask(job | {"threads": threads})
        except WorkerError:
            self.close()
            raise

    def ask(self, request: Record) -> Record:
        """Send a request, and wait for the answer."""
        sent, answers = self._process.stdin, self._process.stdout
        assert sent is not None and answers is not None
        try:
            sent.write(json.dumps(request).encode() + b"\n")
            sent.flush()
            answer = answers.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            raise WorkerError(lines[-1] if lines else f"exit status {self._process.returncode}")
        return json.loads(answer)

    @property
    def cpu_ticks(self) -> int:
        """The CPU time of the process, in clock ticks."""
        return sum(map(int, Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


@dataclass
class Measurement:
    """One system with one scheme: its worker, and its steps so far."""

    system: str
    scheme: str
    worker: Worker
    variant: str | None = None
    bursts: list[tuple[float, list[float]]] = field(default_factory=list)
    """For each burst the lower of the bandwidths before and after it, and the seconds of its steps."""
    quiet: float = 0.0
    """The lowest bandwidth with which a burst counts."""
    memory: Record = field(default_factory=dict)

    @property
    def times(self) -> list[float]:
        """The seconds of the steps that count: at least those of the two bursts with the most bandwidth."""
        ranked = sorted(self.bursts, reverse=True)
        counted = [times for index, (bandwidth, times) in enumerate(ranked) if index < 2 or bandwidth >= self.quiet]
        return [seconds for times in counted for seconds in times]

    @property
    def ms(self) -> float:
        """The median time of a step, in milliseconds."""
        return 1e3 * statistics.median(self.times)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile, in milliseconds."""
        low, _, high = statistics.quantiles(self.times, n=4, method="inclusive")
        return 1e3 * low, 1e3 * high


@contextmanager
def workers(
    model: str, batch: int, schemes: Sequence[str], threads: int, peers: Peers
) -> Iterator[tuple[list[Measurement], Worker]]:
    """Start all systems of a model and batch, warmed up, and the worker that measures the machine."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start(job: Record) -> Worker:
            worker = Worker({"model": model, "batch": batch} | job, threads)
            stack.callback(worker.close)
            return worker

        measurements = []
        for scheme in schemes:
            job = {"scheme": scheme, "program": str(directory / f"{scheme}.pock")}
            console.log(f"compiling {model}, batch {batch}, {scheme}")
            compiler = Worker({"system": "compiler", "model": model, "batch": batch} | job, threads)
            compiler.close()
            job["trained"] = compiler.info["trained"]
            wanted = [("ours", "ours", None), ("torch", "torch", "default")]
            wanted += [("torch-best", "torch", v) for v in BEST if v != "channels-last" or _reads_images(model)]
            if peers is Peers.all:
                wanted += [(name, name, None) for name in PEERS if importlib.util.find_spec(name)]
            for system, kind, variant in wanted:
                console.log(f"starting {title_of(system, variant)}, {scheme}")
                try:
                    worker = start(job | {"system": kind, "variant": variant})
                except WorkerError as error:
                    if system in ("ours", "torch"):
                        raise
                    console.print(
                        f"{title_of(system, variant)}, {model}, batch {batch}, {scheme}: unavailable: {error}"
                    )
                    continue
                measurements.append(Measurement(system, scheme, worker, variant))
                loss, expected = worker.info["loss"], measurements[0].worker.info["loss"]
                if not math.isclose(loss, expected, rel_tol=1e-3):
                    raise ValueError(f"{title_of(system, variant)} has the loss {loss}, and ours {expected}")
        yield measurements, start({"system": "peak"})


def measure(model: str, batch: int, schemes: Sequence[str], threads: int, rounds: int, peers: Peers) -> list[Record]:
    """Measure all systems on a model and batch."""
    with workers(model, batch, schemes, threads, peers) as (measurements, peak):
        console.log(f"measuring in {rounds} rounds")
        everyone = [peak, *(measurement.worker for measurement in measurements)]
        start, best = _ticks(everyone), max(_probe(peak) for _ in range(PATIENCE))
        for turn in range(rounds):
            peak.ask({"do": "burst", "seconds": BURST})
            first = turn % len(measurements)  # vary which system runs before which
            for measurement in measurements[first:] + measurements[:first]:
                before = _quiet_bandwidth(peak, QUIET * best)
                times = measurement.worker.ask({"do": "burst", "seconds": BURST})["times"]
                after = _probe(peak)
                measurement.bursts.append((min(before, after), times))
                best = max(best, before, after)
        everything, others = (end - begin for end, begin in zip(_ticks(everyone), start, strict=True))
        for measurement in measurements:
            measurement.quiet = QUIET * best
            measurement.memory = measurement.worker.ask({"do": "finish"})
        run = {
            "model": model,
            "batch": batch,
            "threads": threads,
            "peak_gflops": peak.ask({"do": "finish"})["info"]["gflops"],
            "others_share": others / everything,
            "gbytes": best,
        }
    return _records(measurements, run)


def _probe(peak: Worker) -> float:
    """Measure the GB/s between cores."""
    gbytes: float = peak.ask({"do": "probe"})["gbytes"]
    return gbytes


def _quiet_bandwidth(peak: Worker, enough: float) -> float:
    """Wait until the GB/s between cores are enough, at most ``PATIENCE`` times; return the last measurement."""
    for _ in range(PATIENCE):
        if (now := _probe(peak)) >= enough:
            break
        time.sleep(0.5)
    return now


def _ticks(own: Sequence[Worker]) -> tuple[int, int]:
    """The clock ticks of all cores so far, and those that processes other than these workers used."""
    line = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, idle, waiting, *interrupts = map(int, line.split()[1:9])
    busy = user + nice + system + sum(interrupts)
    return busy + idle + waiting, busy - sum(worker.cpu_ticks for worker in own)


def _records(measurements: list[Measurement], run: Record) -> list[Record]:
    """Make a record for each system and scheme; of PyTorch's variants for the fastest."""
    flops = {m.scheme: m.worker.info["flops"] for m in measurements if m.system == "ours"}
    variants: dict[str, list[Measurement]] = {}
    for m in measurements:
        if m.system in ("torch", "torch-best"):  # the best may be the default
            variants.setdefault(m.scheme, []).append(m)
    best = {scheme: min(found, key=lambda m: m.ms) for scheme, found in variants.items()}
    default = {m.scheme: m for m in measurements if m.system == "torch"}
    rows = [m for m in measurements if m.system != "torch-best"]
    rows += [replace(m, system="torch-best") for m in best.values()]
    return [
        run
        | _record(m, flops[m.scheme], run["peak_gflops"])
        | {"done_flops": m.worker.info.get("done_flops")}
        | {
            "ratio_vs_torch_full": default["full"].ms / m.ms if "full" in default else None,
            "ratio_vs_torch_best_full": best["full"].ms / m.ms if "full" in best else None,
            "ratio_vs_torch_best_same": best[m.scheme].ms / m.ms,
        }
        | ({"variants_ms": {v.variant: v.ms for v in variants[m.scheme]}} if m.system == "torch-best" else {})
        for m in sorted(rows, key=lambda m: (list(flops).index(m.scheme), SYSTEMS.index(m.system)))
    ]


def _record(m: Measurement, flops: float, peak: float) -> Record:
    gflops = flops / m.ms / 1e6
    return {
        "scheme": m.scheme,
        "system": m.system,
        "variant": m.variant,
        "ms": m.ms,
        "fastest_ms": 1e3 * min(m.times),
        "quartiles_ms": m.quartiles,
        "steps": len(m.times),
        "bursts": len(m.bursts),
        "quiet_bursts": sum(bandwidth >= m.quiet for bandwidth, _ in m.bursts),
        "gflops": gflops,
        "peak_fraction": gflops / peak,
        "train_bytes": m.memory["train_bytes"],
        "arena_over_bound": m.worker.info.get("arena_over_bound"),
        "rss_bytes": m.memory["rss_bytes"] if m.system not in PEERS else None,  # their processes hold PyTorch as well
        "added_bytes": m.memory["added"],
    }


def _reads_images(model: str) -> bool:
    return NETWORKS[model].reads == "images"


def _report_absent_peers() -> None:
    for name, command in PEERS.items():
        if importlib.util.find_spec(name) is None:
            console.print(f"{name}: unavailable: it is not installed ({command})")
    console.print("MNN: unavailable: its Python package loads a converted network and does steps, but trains nothing")


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    model: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(NETWORKS)}; may be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="May be repeated; 1 and 8 without.")] = None,
    scheme: Schemes = Schemes.both,
    threads: Annotated[int | None, typer.Option(help="For every system; all cores without.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How many turns each system has.")] = 5,
    json_output: Annotated[Path | None, typer.Option("--json")] = None,
    peers: Peers = Peers.none,
) -> None:
    """Measure the steps, and print a table for each model and batch."""
    if context.invoked_subcommand:
        return
    if unknown := [name for name in model or [] if name not in NETWORKS]:
        raise typer.BadParameter(f"there is no model '{unknown[0]}'; there are {', '.join(NETWORKS)}")
    if peers is Peers.all:
        _report_absent_peers()
    records = []
    for name in model or NETWORKS:
        for size in batch or (1, 8):
            rows = measure(name, size, scheme.names, threads or len(os.sched_getaffinity(0)), rounds, peers)
            if (share := rows[0]["others_share"]) > 0.05:
                console.print(f"Doubtful: other processes used {100 * share:.0f} % of this machine meanwhile.")
            console.print(table(rows))
            for line in (line for row in rows for line in needed_shares(row)):
                console.print(line)
            for row in rows:
                if (row["arena_over_bound"] or 1) > ARENA_LIMIT:
                    console.print(f"{row['scheme']}: the arena is {row['arena_over_bound']:.2f} times its lower bound")
            records += rows
            if json_output is not None:
                json_output.write_text(json.dumps(records, indent=1))


@app.command(hidden=True)
def worker() -> None:
    """Run one system as a worker process."""
    from step_workers import serve

    serve()


if __name__ == "__main__":
    app()
