"""Runs on a machine with a GPU what `on_gpu_programs.py` compiled: no TVM, only PyTorch, NumPy and `pock_tvm.device`.

    python bench/on_gpu.py [--folder .gpu] [--out DIR] [--seconds 540]

In order of worth, each row printed and appended to DIR/rows.jsonl at once:

1. numeric cases: losses and updates of three steps against the CPU's;
2. a training step of each network, ours beside PyTorch's: eager, channels-last, `torch.compile`, in float32 (tf32 off)
   and bf16. `torch.compile` works for all networks at once from the start, and fills its cache;
3. matrix products beside PyTorch's, which are cuBLAS's.

Jobs run in a process of their own kind. One that dies takes a row that says so with it; the rest goes on.
*ms* is the time of a step where steps queue up, *ms_read* where the loss of each is read, *ms_device* without inputs.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from step_models import NETWORKS, Network, _transformer, arguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pock_tvm as pock  # noqa: E402
from pock_tvm.device.gpu.devices import open_device  # noqa: E402
from pock_tvm.device.gpu.library import LaunchLibrary  # noqa: E402
from pock_tvm.device.gpu.memory import DeviceMemory  # noqa: E402
from pock_tvm.device.library import CALL_KERNEL  # noqa: E402

FULL = ("mobilenetv2", "resnet50", "bert", "llama")
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 1000,
}
BLOCKS = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 10}
SMALL = {
    "resnet50": Network("ResNet, small", _transformer("ResNetForImageClassification", **BLOCKS), 32, 10),
    "llama": Network("Llama, small", _transformer("LlamaForCausalLM", **TINY), 16, 1000, "text"),
}
RATE = 1e-4
DTYPES = ("float32", "bfloat16")
BURSTS, BURST_SECONDS = 5, 0.2
PATIENCE = 240
"""Seconds from the start after which nobody waits for `torch.compile` any more."""
CLEAN = 1e-4
"""Largest difference of an update, relative to the update, that counts as equal."""
ROUNDING = {"float32": CLEAN, "bfloat16": 2.0**-8}
"""Largest difference of a product, relative to its largest number, that counts as equal."""
WEIGHT_SPACING = 2.0**-22  # twice the rounding of an update of a weight, relative to the weight


def networks_of(small: bool) -> dict[str, Network]:
    """The networks whose steps are taken."""
    return SMALL if small else {name: NETWORKS[name] for name in FULL}


@dataclass(frozen=True)
class Product:
    """A matrix product: sizes of the result, length of the sums, which operands lie transposed (``nt``), their type."""

    rows: int
    columns: int
    depth: int
    transposed: str
    dtype: str

    @property
    def name(self) -> str:
        """Name of its library."""
        return f"{self.rows}x{self.columns}x{self.depth}-{self.transposed}-{self.dtype}"

    @classmethod
    def named(cls, name: str) -> Product:
        """The product of a name."""
        sizes, transposed, dtype = name.split("-")
        return cls(*map(int, sizes.split("x")), transposed, dtype)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes of the operands as they lie in memory."""
        plain = [(self.rows, self.depth), (self.depth, self.columns)]
        return [shape[::-1] if letter == "t" else shape for shape, letter in zip(plain, self.transposed, strict=True)]


# ---- one job each ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What jobs run on."""

    folder: Path
    small: bool
    batch: int
    device: str

    @property
    def torch_device(self) -> str:
        """PyTorch's name of the device."""
        return self.device if self.device.startswith("cuda") else "cpu"


def case(setting: Setting, name: str) -> Iterator[dict[str, Any]]:
    """Take a numeric case's steps, and compare them."""
    number = name.split()[0]
    program = pock.Program.load(setting.folder / "case" / f"{number}.pock")
    expected = dict(np.load(setting.folder / "case" / f"{number}.npz"))
    trainer = pock.Trainer(program, device=setting.device)
    losses = [trainer.step(expected[f"x{at}"], expected[f"y{at}"], lr=1e-2) for at in range(len(expected["losses"]))]
    worst = 0.0
    for key, after in trainer.weights().items():
        before, wanted = program.weights[key], expected[f"weight.{key}"]
        rounding = WEIGHT_SPACING * np.linalg.norm(before)
        off = max(0.0, float(np.linalg.norm(after - wanted) - rounding))
        worst = max(worst, off / max(float(np.linalg.norm(wanted - before)), 1e-30) if off else 0.0)
    outputs = trainer.predict(expected["x0"])
    output = outputs[0] if isinstance(outputs, tuple) else outputs
    predicted = float(np.abs(output - expected["predicted"]).max() / max(np.abs(expected["predicted"]).max(), 1e-30))
    loss = float(np.max(np.abs(losses - expected["losses"]) / np.abs(expected["losses"])))
    yield {"update": worst, "loss": loss, "predicted": predicted, "equal": max(worst, loss, predicted) <= CLEAN}


def step(setting: Setting, name: str) -> Iterator[dict[str, Any]]:
    """Take training steps of a network."""
    network, system, dtype = name.split()
    take = ours if system == "ours" else functools.partial(pytorch, system=system)
    yield {"network": network, "system": system, "dtype": dtype, "batch": setting.batch} | take(setting, network, dtype)


def ours(setting: Setting, name: str, dtype: str) -> dict[str, Any]:
    """Take steps of our program."""
    network = networks_of(setting.small)[name]
    (x, y), model = network.data(setting.batch), network.build()
    program = pock.Program.load(setting.folder / "step" / f"{name}-{dtype}.pock")
    state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    start = time.perf_counter()
    weights = {key: state[key] for key in program.manifest["weight_crc32"]}
    trainer = pock.Trainer(replace(program, weights=weights), device=setting.device)
    loss = trainer.step(x, y, lr=RATE)
    loaded = time.perf_counter() - start
    table, backend = trainer._tables["train_step"], trainer._library._backend
    found = measured(lambda: trainer.queue(x, y, lr=RATE), trainer.losses)
    found |= {"ms_read": measured(lambda: trainer.step(x, y, lr=RATE), backend.finish)["ms"]}
    found |= {"ms_device": measured(lambda: backend.submit(table.recorded), backend.finish)["ms"]}
    memory = program.memory()
    mib = sum(memory[part] for part in ("parameters", "optimizer_state", "gradient_sums", "arena")) / 2**20
    return found | {"loss": loss, "mib": round(mib, 1), "seconds_to_first": round(loaded, 1)}


def pytorch(setting: Setting, name: str, dtype: str, system: str) -> dict[str, Any]:
    """Take PyTorch's steps."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    network, device = networks_of(setting.small)[name], torch.device(setting.torch_device)
    model = network.build().to(device)
    x, y = network.data(setting.batch)
    inputs = {key: torch.from_numpy(array).to(device) for key, array in x.items()}
    target = torch.from_numpy(y).to(device)
    if system == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        inputs = {key: each.contiguous(memory_format=torch.channels_last) for key, each in inputs.items()}
    args, kwargs = arguments(model, inputs)
    parameters = model.parameters()
    if network.reads == "images":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=RATE)
    call = torch.compile(model) if system == "compile" else model

    def once() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = call(*args, **kwargs).logits
        if network.reads == "text":
            logits, wanted = logits[:, :-1].flatten(0, 1), target[:, 1:].flatten()
        else:
            wanted = target
        loss = torch.nn.functional.cross_entropy(logits.float(), wanted)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    loss = float(once())
    first = time.perf_counter() - start
    found = measured(once, finish)
    found |= {"ms_read": measured(lambda: once().item(), finish)["ms"]}
    if device.type == "cuda":
        found["mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return found | {"loss": loss, "seconds_to_first": round(first, 1)}


def product(setting: Setting, name: str) -> Iterator[dict[str, Any]]:
    """Multiply matrices, ours and PyTorch's."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = Product.named(name)
    rng = np.random.default_rng(0)
    tensors = [
        torch.from_numpy(rng.standard_normal(shape, "float32")).to(getattr(torch, sizes.dtype))
        for shape in sizes.shapes
    ]
    words = "uint16" if sizes.dtype == "bfloat16" else "float32"  # NumPy has no bfloat16
    values = [each.view(getattr(torch, words)).numpy() for each in tensors]
    tensors = [each.to(setting.torch_device) for each in tensors]
    plain = [each.T if letter == "t" else each for each, letter in zip(tensors, sizes.transposed, strict=True)]
    flops = 2.0 * sizes.rows * sizes.columns * sizes.depth
    finish = torch.cuda.synchronize if setting.torch_device != "cpu" else lambda: None
    theirs = measured(lambda: torch.matmul(*plain), finish)

    backend = open_device(setting.device, setting.device.partition(":")[0])
    memory = DeviceMemory(backend)
    library = LaunchLibrary((setting.folder / "product" / f"{name}.zip").read_bytes(), {}, backend, memory)
    result = memory.allocate((sizes.rows, sizes.columns), words)
    scratch = [memory.allocate((size,), "uint8") for size in library._kernels["product"]["sizes"][3:]]
    arrays = [*(memory.copy_of(value) for value in values), result, *scratch]
    table = library.table([0, *(memory.address(array) for array in arrays)])
    library.run(CALL_KERNEL, table)
    expected = torch.matmul(*(each.double() for each in plain)).cpu().numpy()
    found = torch.from_numpy(memory.read(result).copy()).view(getattr(torch, sizes.dtype)).double().numpy()
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    mine = measured(lambda: backend.submit(table.recorded), backend.finish)
    rates = {who: flops / (each["ms"] * 1e9) for who, each in (("tflops", mine), ("cublas_tflops", theirs))}
    yield {"dtype": sizes.dtype, "off": off, "equal": off <= ROUNDING[sizes.dtype], **mine, **rates}


def measured(call: Callable[[], Any], finish: Callable[[], Any]) -> dict[str, Any]:
    """Time a call in bursts, between which everything is done. Return median and quartiles in milliseconds."""
    for _ in range(2):
        call()
    finish()
    start = time.perf_counter()
    call()
    finish()
    count = max(1, min(1000, int(BURST_SECONDS / max(time.perf_counter() - start, 1e-6))))
    times = []
    for _ in range(BURSTS):
        start = time.perf_counter()
        for _ in range(count):
            call()
        finish()
        times.append(1e3 * (time.perf_counter() - start) / count)
    low, _, high = statistics.quantiles(times, n=4)
    return {"ms": statistics.median(times), "quartiles": [low, high]}


# ---- all jobs --------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Setting, str], Iterator[dict[str, Any]]]] = {"case": case, "step": step, "product": product}


def note(path: Path, kind: str, name: str, row: dict[str, Any]) -> None:
    """Print a row, and append it to a file."""
    line = json.dumps({"kind": kind, "name": name, **row})
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")


def work(setting: Setting, kind: str, names: list[str], rows: Path) -> None:
    """Do jobs of one kind. A failure is a row, and ends the process if the device may not answer any more."""
    for name in names:
        try:
            for row in KINDS[kind](setting, name):
                note(rows, kind, name, row)
        except Exception as error:  # noqa: BLE001 - the next job may go
            note(rows, kind, name, {"error": f"{type(error).__name__}: {error}"[:500]})
            if "CUDA" in str(error):
                sys.exit(1)
        gc.collect()
        if "torch" in sys.modules and setting.torch_device != "cpu":
            sys.modules["torch"].cuda.empty_cache()


def warm(setting: Setting, name: str) -> None:
    """Let `torch.compile` fill its cache for a network."""
    for dtype in DTYPES:
        pytorch(setting, name, dtype, "compile")


def command(options: argparse.Namespace, *more: str) -> list[str]:
    """Make the command of a process for some of the work."""
    return [sys.executable, __file__, "--folder", str(options.folder), "--out", str(options.out), *more]


def everything(options: argparse.Namespace, record: dict[str, Any], rows: Path) -> None:
    """Do all jobs in their order, as far as the time goes."""
    start = time.monotonic()

    def left() -> float:
        return options.seconds - (time.monotonic() - start)

    networks = dict.fromkeys(name.split()[0] for kind, name in record["jobs"] if kind == "step")
    compiling = [
        subprocess.Popen(command(options, "--warm", name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in networks
    ]
    try:
        for kind in KINDS:
            if kind == "step":
                wait(compiling, PATIENCE - (time.monotonic() - start))
            names = [name for each, name in record["jobs"] if each == kind]
            while names and left() > 0:
                try:
                    done = subprocess.run(
                        command(options, "--work", kind, *names), timeout=left(), stderr=subprocess.PIPE, check=False
                    )
                    said = f"the process ended with {done.returncode}: {done.stderr.decode()[-300:].strip()}"
                except subprocess.TimeoutExpired:
                    said = "no time was left"
                known = {(row["kind"], row["name"]) for row in map(json.loads, rows.read_text().splitlines())}
                remaining = [name for name in names if (kind, name) not in known]
                if remaining == names:  # the first one has killed it
                    note(rows, kind, remaining.pop(0), {"error": said})
                names = remaining
    finally:
        for process in compiling:
            process.kill()
    compare(rows)
    known = {(row["kind"], row["name"]) for row in map(json.loads, rows.read_text().splitlines())}
    missing = [f"{kind} {name}" for kind, name in record["jobs"] if (kind, name) not in known]
    print(f"{time.monotonic() - start:.0f} s; no time was left for: {', '.join(missing) or 'nothing, all is done'}")


def compare(rows: Path) -> None:
    """Note how far our first loss of each network is from PyTorch's, relative to it."""
    steps = [row for row in map(json.loads, rows.read_text().splitlines()) if row["kind"] == "step" and "loss" in row]
    losses = {(row["network"], row["system"]): row["loss"] for row in steps if row["dtype"] == "float32"}
    for network in dict.fromkeys(network for network, system in losses if system == "ours"):
        if (network, "eager") in losses:
            wanted = losses[network, "eager"]
            off = abs(losses[network, "ours"] - wanted) / abs(wanted)
            note(rows, "loss", network, {"off": off, "equal": off <= CLEAN})


def wait(processes: list[subprocess.Popen], seconds: float) -> None:
    """Wait for processes, and end those that take longer: what they would do disturbs the clocks."""
    end = time.monotonic() + max(seconds, 0)
    for process in processes:
        try:
            process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()


def main() -> None:
    """Do all jobs, or in a process of their own some of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".gpu"))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".gpu")))
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    record = json.loads((options.folder / "jobs.json").read_text())
    setting = Setting(options.folder, record["small"], record["batch"], record["device"])
    rows = options.out / "rows.jsonl"
    if options.warm:
        warm(setting, options.warm)
    elif options.work:
        work(setting, options.work[0], options.work[1:], rows)
    else:
        rows.write_text("")
        everything(options, record, rows)


if __name__ == "__main__":
    main()
