"""The systems that `train_step.py` measures, each in a process of its own that runs steps on request.

A worker reads JSON objects from standard input, one a line, and answers each with one. The first is the job to set up.
Then ``{"do": "burst", "seconds": …}`` is answered by the times of steps, ``{"do": "probe"}`` by the bandwidth between
cores (`peak` only), and ``{"do": "finish"}`` by the memory that was used.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from step_models import NETWORKS, arguments, exported, fold_batch_norm

LR, MOMENTUM = 1e-4, 0.9
WARM_UP = 3
"""Steps before the first measurement."""
COPIED = 2 * 2**20
"""Bytes that one core writes and another one reads."""
PRODUCTS = ("pock.matmul", "pock.conv2d", "pock.depthwise")
"""Beginnings of the kinds of kernels that multiply by weights."""
Job = dict[str, Any]


class System:
    """A system that runs training steps, always on the same batch."""

    info: dict[str, Any]
    """The answer to the job, sent when the system is ready."""
    base: int
    """Bytes that the process takes without training: what it has imported, and the weights once."""

    def step(self) -> float:
        """Do one step, wait until it is done, and return its loss."""
        raise NotImplementedError

    def rest(self) -> None:
        """Free memory that the next step allocates anyway: other systems need it meanwhile."""

    def train_bytes(self) -> int | None:
        """The peak memory of a step beyond the parameters."""


class Ours(System):
    """A compiled program, in a process without PyTorch, as on a device."""

    def __init__(self, job: Job) -> None:
        sys.modules["torch"] = None  # type: ignore[assignment] # keeps tvm_ffi from importing it
        import pock_tvm.device.runtime  # noqa: F401 - TVM's runtime, which a trainer imports
        from pock_tvm.device.program import Program, kernel_calls
        from pock_tvm.device.trainer import Trainer

        imported = _status("VmRSS")
        self._program = Program.load(job["program"])
        self.base = imported + self._program.memory()["parameters"]
        self._trainer = Trainer(self._program, threads=job["threads"])
        inputs, self._target = NETWORKS[job["model"]].data(job["batch"])
        self._inputs = list(inputs.values())
        layers = self._program.manifest["layers"]
        memory = self._program.memory()
        kernels = self._program.manifest["kernels"]
        calls = [kernels[name] for name, _ in kernel_calls(self._program.manifest["entries"]["train_step"])]
        self.info = {
            "flops": sum(layer["forward_flops"] + layer["backward_flops"] for layer in layers),
            "done_flops": sum(call["flops"] for call in calls if call["kind"].startswith(PRODUCTS)),
            "arena_over_bound": memory["arena"] / memory["lower_bound"],
        }

    def step(self) -> float:
        """One call."""
        return self._trainer.step(self._inputs, self._target, lr=LR)

    def train_bytes(self) -> int:
        """The bytes of the program's memory plan, which the trainer allocates exactly."""
        memory = self._program.memory()
        return memory["arena"] + memory["optimizer_state"] + memory["gradient_sums"]


class Compiler:
    """A compiler of the program that :class:`Ours` runs; it runs no steps."""

    def __init__(self, job: Job) -> None:
        import pock_tvm as pock

        net = NETWORKS[job["model"]]
        model = exported(job["model"], job["batch"])
        program = pock.compile(
            model,
            scheme=pock.Scheme.full() if job["scheme"] == "full" else pock.Scheme.pockengine(model),
            loss=net.loss,
            optimizer=pock.SGD(momentum=MOMENTUM),
            batch=job["batch"] if job["model"] == "mcunet" else None,
        )
        program.save(job["program"])
        aliases = program.manifest["aliases"]
        self.info = {"trained": [*program.trained, *(name for name in aliases if aliases[name] in program.trained)]}


class Torch(System):
    """PyTorch: ``default`` as people run it; ``eager``, ``channels-last`` and ``compiled`` with BatchNorm folded and
    the fused optimizer."""

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(job["threads"])
        net, variant = NETWORKS[job["model"]], job["variant"]
        inputs, target = net.data(job["batch"])
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        self._target = torch.from_numpy(target)
        self._model, trained = net.build(), set(job["trained"])
        _trim()
        self.base = _status("VmRSS")
        if unknown := trained - {name for name, _ in self._model.named_parameters(remove_duplicate=False)}:
            raise ValueError(f"the program trains {sorted(unknown)[0]}, which is no parameter of PyTorch's")
        if variant != "default":
            trained = folded(self._model, trained, tensors)
        if net.reads == "images" and variant in ("channels-last", "compiled"):
            self._model = self._model.to(memory_format=torch.channels_last)
            tensors = {name: x.contiguous(memory_format=torch.channels_last) for name, x in tensors.items()}
        self._arguments = arguments(self._model, tensors)
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(name in trained)
        self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        fused = None if variant == "default" else True
        self._optimizer = torch.optim.SGD(self._trained, lr=LR, momentum=MOMENTUM, fused=fused)
        self._shifted = net.loss == "causal_lm"
        self._loss: Callable[[], Any] = torch.compile(self._eager_loss) if variant == "compiled" else self._eager_loss
        self.info = {}

    def _eager_loss(self) -> Any:
        from torch.nn.functional import cross_entropy

        args, kwargs = self._arguments
        logits, target = logits_of(self._model(*args, **kwargs)), self._target
        if self._shifted:
            logits, target = logits[:, :-1].flatten(0, 1), target[:, 1:].flatten()
        return cross_entropy(logits, target)

    def step(self) -> float:
        """Forward, backward, update."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        self._optimizer.step()
        return float(loss)

    def rest(self) -> None:
        """Free the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def train_bytes(self) -> int:
        """The momentum, and the allocator's peak in a step that begins without gradients."""
        from torch.profiler import ProfilerActivity, profile

        self.rest()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            self.step()
        events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
        live = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
        momentum = sum(parameter.numel() * parameter.element_size() for parameter in self._trained)
        return momentum + int(live.max())


class Peak(System):
    """The machine's peak: multiply-adds on registers; and the bandwidth between cores."""

    def __init__(self, job: Job) -> None:
        from machine import Machine

        self._machine = Machine(job["threads"])
        self._from, self._to = (np.ones(COPIED // 4, np.float32) for _ in range(2))
        self.info = {"gflops": 0.0}

    def between_cores(self) -> float:
        """GB/s at which the first core reads what the last one has just written; the best of a few runs."""
        cores, seconds = sorted(os.sched_getaffinity(0)), []

        def write() -> None:
            os.sched_setaffinity(0, cores[-1:])
            np.add(self._from, 1, out=self._from)

        os.sched_setaffinity(0, cores[:1])
        for _ in range(8):
            writer = threading.Thread(target=write)
            writer.start()
            writer.join()
            start = time.perf_counter()
            np.copyto(self._to, self._from)
            seconds.append(time.perf_counter() - start)
        os.sched_setaffinity(0, cores)
        return 1e-9 * self._from.nbytes / min(seconds)

    def step(self) -> float:
        """Measure the multiply-adds once."""
        self._machine.measure_flops()
        self.info["gflops"] = 1e-9 * self._machine.flops
        return 0.0


def logits_of(outputs: Any) -> Any:
    """The logits of a ``transformers`` network's outputs; the outputs themselves of any other network."""
    return getattr(outputs, "logits", outputs)


def folded(model: Any, trained: set[str], tensors: dict[str, Any]) -> set[str]:
    """Fold a model's BatchNorms and check its outputs; return the trained parameters by their new names."""
    import torch

    args, kwargs = arguments(model, tensors)
    with torch.no_grad():
        before = logits_of(model(*args, **kwargs))
        trained = fold_batch_norm(model, trained)
        after = logits_of(model(*args, **kwargs))
    if (after - before).abs().max() > 1e-3 * before.abs().max():
        raise ValueError("folding BatchNorm has changed what the network computes")
    return trained


def _system(job: Job) -> Any:
    if job["system"] == "jax":
        from step_jax import Jax

        return Jax(job)
    if job["system"] == "onnxruntime":
        from step_onnxruntime import OnnxRuntime

        return OnnxRuntime(job)
    return {"ours": Ours, "compiler": Compiler, "torch": Torch, "peak": Peak}[job["system"]](job)


def _burst(system: System, seconds: float) -> list[float]:
    """Time at least two steps, after one that warms memory and caches; in seconds."""
    system.step()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 2:
        start = time.perf_counter()
        system.step()
        times.append(time.perf_counter() - start)
    return times


def _status(name: str) -> int:
    """A number of bytes that Linux tells of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])


def _trim() -> None:
    """Give back what the C library keeps of freed memory."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def serve() -> None:
    """Set up the system of the first line, then answer the requests of further lines."""
    warnings.simplefilter("ignore")
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries must not print between the answers

    def reply(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=replies)

    def rest() -> None:
        system.rest()
        _trim()

    system = _system(json.loads(sys.stdin.readline()))
    if isinstance(system, System):
        system.info["loss"] = [system.step() for _ in range(WARM_UP)][0]
        rest()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    reply(system.info)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "burst":
            times = _burst(system, request["seconds"])
            rest()
            reply({"times": times})
        elif request["do"] == "probe":
            reply({"gbytes": system.between_cores()})
        else:
            peak = _status("VmHWM")
            added = peak - system.base if hasattr(system, "base") else None
            reply({"rss_bytes": peak, "added": added, "info": system.info, "train_bytes": system.train_bytes()})
