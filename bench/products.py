"""Measures the products of training one by one: compiled kernels against PyTorch's and against the machine's limit.

    python bench/products.py [--only 768x3072] [--threads 2] [--rounds 5] [--json out.json]

Each product is compiled as in a program: a graph of one operator goes through phases 6 to 9. So a frozen weight is
packed when a program is loaded, and the time includes every kernel that the product needs: transposes, padding, sums
of parts. PyTorch gets tensors in the layout that it likes best; its convolutions are channels-last. The two take
turns, while no other work uses a core. Each time is the median of the fastest turn: for as long as a turn, Linux may
leave two threads on one core. Repeated calls find small operands in a cache, for both alike.

The *limit* of a product is the longer of two times: its arithmetic at the machine's peak, measured by multiply-adds on
registers alone, and its operands and result, each moved once, at the bandwidth of a copy in memory. Products whose
operands stay in a cache may be faster than the second.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

# A worker that is bound to a core may share it with the calling thread, which calls too shortly for Linux to move it.
os.environ.setdefault("TVM_BIND_THREADS", "0")

# isort: split
import typer
from machine import Machine
from rich.console import Console
from rich.table import Table

TURN = 0.02
"""Seconds of calls in a turn: at least one call."""
console = Console(width=150, log_path=False)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
QUIET = 0.9
"""Share of the peak below which other work uses a core."""
PATIENCE = 10
"""Largest number of delays of a turn."""
REST = {"ours": 0.03, "torch": 0.4}
"""Seconds before a turn in which the other system's waiting threads fall asleep. TVM's wait for a third of a second."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """One product of a layer: the operator, the shapes of its operands, and which operand is frozen, if any."""

    layer: str
    form: str
    shapes: tuple[Shape, Shape]
    flops: float
    options: tuple[tuple[str, Any], ...] = ()
    frozen: bool = False
    """Whether the second operand is a frozen weight."""

    @property
    def name(self) -> str:
        """Layer and form."""
        return f"{self.layer} {self.form}"


def linear(rows: int, inputs: int, outputs: int) -> list[Product]:
    """Return the products of a linear layer: Y = X W with a trained and with a frozen W, dX = dY W^T, dW = X^T dY."""
    layer, flops = f"{rows} rows {inputs}x{outputs}", 2.0 * rows * inputs * outputs
    x, weight, grad = (rows, inputs), (inputs, outputs), (rows, outputs)
    return [
        Product(layer, "NN", (x, weight), flops),
        Product(layer, "NN frozen", (x, weight), flops, frozen=True),
        Product(layer, "NT", (grad, weight), flops, (("transpose_b", True),)),
        Product(layer, "TN", (x, grad), flops, (("transpose_a", True),)),
    ]


def attention(heads: int, tokens: int, width: int) -> list[Product]:
    """Return the batched products of attention: scores, values, and the gradient of the values or keys."""
    layer, flops = f"{heads} heads {tokens}x{width}", 2.0 * heads * tokens * tokens * width
    scores, values = (heads, tokens, tokens), (heads, tokens, width)
    return [
        Product(layer, "NT", (values, values), flops, (("transpose_b", True),)),
        Product(layer, "NN", (scores, values), flops),
        Product(layer, "TN", (scores, values), flops, (("transpose_a", True),)),
    ]


def convolution(batch: int, size: int, taps: int, inputs: int, outputs: int, stride: int = 1) -> list[Product]:
    """Return the three products of a convolution of square images, padded to keep their size. Its weight is trained."""
    out, pad = size // stride, taps // 2
    layer = f"batch {batch}, {size}x{size}, {taps}x{taps} {inputs}->{outputs}" + (f" /{stride}" if stride > 1 else "")
    flops = 2.0 * batch * out * out * taps * taps * inputs * outputs
    x, weight, grad = (batch, size, size, inputs), (taps, taps, inputs, outputs), (batch, out, out, outputs)
    geometry = (("strides", (stride, stride)), ("padding", (pad,) * 4))
    return [
        Product(layer, "forward", (x, weight), flops, geometry),
        Product(layer, "data", (grad, weight), flops, (*geometry, ("size", (size, size)))),
        Product(layer, "weight", (x, grad), flops, (*geometry, ("kernel_size", (taps, taps)))),
    ]


PRODUCTS = [
    *linear(1024, 1024, 1024),
    *linear(128, 768, 768),
    *linear(128, 768, 3072),
    *linear(128, 3072, 768),
    *linear(1024, 768, 3072),
    *linear(1024, 3072, 768),
    *linear(256, 768, 32000),
    *linear(17, 33, 197),
    *linear(197, 768, 768),
    *linear(197, 1000, 33),
    *linear(1000, 1000, 1000),
    *attention(12, 128, 64),
    *attention(12, 256, 64),
    *attention(12, 197, 64),
    # MobileNetV2
    *convolution(1, 112, 1, 32, 16),
    *convolution(1, 56, 1, 24, 144),
    *convolution(1, 28, 1, 192, 32),
    *convolution(1, 14, 1, 64, 384),
    *convolution(1, 14, 1, 96, 576),
    *convolution(1, 7, 1, 160, 960),
    *convolution(1, 7, 1, 960, 320),
    *convolution(1, 7, 1, 320, 1280),
    *convolution(8, 56, 1, 24, 144),
    *convolution(8, 14, 1, 384, 96),
    *convolution(8, 7, 1, 960, 160),
    # ResNet-50
    *convolution(1, 56, 1, 64, 256),
    *convolution(1, 56, 3, 64, 64),
    *convolution(1, 28, 3, 128, 128),
    *convolution(1, 14, 3, 256, 256),
    *convolution(1, 7, 3, 512, 512),
    *convolution(1, 28, 3, 256, 256, stride=2),
    *convolution(1, 14, 1, 1024, 256),
    *convolution(1, 7, 1, 2048, 512),
    *convolution(8, 14, 3, 256, 256),
    *convolution(8, 28, 1, 512, 128),
]


def seconds_at_limit(product: Product, machine: Machine) -> float:
    """Return the shortest time that a machine allows a product."""
    return max(product.flops / machine.flops, _bytes(product) / machine.bandwidth)


def _bytes(product: Product) -> float:
    """Return the bytes of a product's operands and its result."""
    (a, b), options = product.shapes, dict(product.options)
    if product.form == "forward":
        result = math.prod(a[:3]) // math.prod(options["strides"]) * b[3]
    elif product.form == "data":
        result = a[0] * math.prod(options["size"]) * b[2]
    elif product.form == "weight":
        result = math.prod(options["kernel_size"]) * a[3] * b[3]
    else:
        rows = a[-1] if options.get("transpose_a") else a[-2]
        result = math.prod(a[:-2]) * rows * (b[-2] if options.get("transpose_b") else b[-1])
    return 4.0 * (math.prod(a) + math.prod(b) + result)


# ---- ours ------------------------------------------------------------------------------------------------------------


class Ours:
    """A product as a program computes it: its kernels, and operands of random numbers."""

    def __init__(self, product: Product, threads: int) -> None:
        import numpy as np

        from pock_tvm.device.memory import aligned
        from pock_tvm.device.runtime import load_library

        code, calls = compiled(product)
        rng = np.random.default_rng(0)
        arrays = [aligned(tensor.shape, tensor.dtype) for tensor in calls.table]
        for array in arrays:
            array[...] = rng.standard_normal(array.shape)
        self._arrays = [*arrays, aligned((calls.workspace.arena_bytes,), "uint8")]
        self._library = load_library(code, threads)
        self._table = self._library.table([array.ctypes.data for array in self._arrays])

    def __call__(self) -> None:
        """Compute the product."""
        self._library.run("train_step", self._table)


def compiled(product: Product) -> tuple[bytes, Any]:
    """Compile a product as phases 6 to 10 do, and return its library and its call list."""
    from pock_tvm.compiler.build import build_library
    from pock_tvm.compiler.kernel_builder import KernelBuilder
    from pock_tvm.compiler.phases import Phases
    from pock_tvm.compiler.pipeline import Training, order_kernels, plan
    from pock_tvm.compiler.targets import resolve_target
    from pock_tvm.device.parameters import FROZEN, FULL, Parameter

    builder = KernelBuilder(resolve_target("host"))
    weight = Parameter("b", product.shapes[1], "float32", trained=FROZEN if product.frozen else FULL)
    phases = Phases(_graph(product), parameters={"b": weight})
    training = Training({} if product.frozen else {"b": None}, guard="off")
    phases.enter(4, "saved", phases.mod)  # what a manifest's layers are read from
    order_kernels(phases, training, builder)
    lowered = plan(phases, training)
    return build_library(lowered.module, lowered.entries, builder, lowered.places).code, lowered.entries["train_step"]


def _graph(product: Product) -> Any:
    """Return functions ``train_step`` and ``predict`` that each consist of the product alone."""
    from tvm import IRModule, relax

    from relay_passes import CopyFunction

    params = [
        relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in zip("ab", product.shapes, strict=True)
    ]
    builder = relax.BlockBuilder()
    with builder.function("train_step", params):
        with builder.dataflow():
            result = builder.emit_output(_operator(product)(*params))
        builder.emit_func_output(relax.Tuple([result]))
    func = builder.get()["train_step"].with_attr("num_input", 1)
    return CopyFunction(["predict"], "train_step")(IRModule({"train_step": func}))


def _operator(product: Product) -> Callable[..., Any]:
    from tvm import relax

    from relay_passes.operators.training import conv2d_data_gradient, conv2d_weight_gradient, matmul

    options = dict(product.options)
    if "strides" not in options:
        flags = {"transpose_a": False, "transpose_b": False}
        return lambda a, b: matmul(a, b, **flags | options)
    if product.form == "forward":
        layout = {"data_layout": "NHWC", "kernel_layout": "HWIO"}
        return lambda x, w: relax.op.nn.conv2d(x, w, **options, **layout)
    gradient = conv2d_data_gradient if product.form == "data" else conv2d_weight_gradient
    return lambda a, b: gradient(a, b, **options, dilation=(1, 1), groups=1)


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def theirs(product: Product) -> Callable[[], object]:
    """Return PyTorch's computation of a product, its result's memory allocated before."""
    import torch

    options = dict(product.options)
    torch.manual_seed(0)
    a, b = (torch.randn(shape) for shape in product.shapes)
    if "strides" not in options:
        a = a.mT if options.get("transpose_a") else a
        b = b.mT if options.get("transpose_b") else b
        out = torch.matmul(a, b)
        return lambda: torch.matmul(a, b, out=out)
    stride, pad = options["strides"], options["padding"][:2]
    last = torch.channels_last
    if product.form == "forward":
        x, w = a.permute(0, 3, 1, 2), b.permute(3, 2, 0, 1).contiguous(memory_format=last)
        return lambda: torch.nn.functional.conv2d(x, w, stride=stride, padding=pad)
    if product.form == "data":
        grad, w = a.permute(0, 3, 1, 2), b.permute(3, 2, 0, 1).contiguous(memory_format=last)
        x = torch.empty(len(a), w.shape[1], *options["size"]).contiguous(memory_format=last)
    else:
        x, grad = a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2)
        w = torch.empty(b.shape[3], a.shape[3], *options["kernel_size"]).contiguous(memory_format=last)
    wanted = [product.form == "data", product.form == "weight", False]
    return lambda: torch.ops.aten.convolution_backward(grad, x, w, None, stride, pad, (1, 1), False, (0, 0), 1, wanted)


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(products: Sequence[Product], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time products, ours and PyTorch's by turns, and return a record for each."""
    import torch

    torch.set_num_threads(threads)
    machine, ours = Machine(threads), [Ours(product, threads) for product in products]
    records = []
    for product, own in zip(products, ours, strict=True):
        peer = theirs(product)
        times: dict[str, list[float]] = {"ours": [], "torch": []}
        for turn in range(rounds):
            for name, compute in (("ours", own), ("torch", peer))[:: 1 if turn % 2 else -1]:
                _wait(machine, REST[name])
                times[name].append(statistics.median(_turn(compute)))
            machine.measure_bandwidth()
        best = {name: min(each) for name, each in times.items()}
        records.append({"layer": product.layer, "form": product.form, "flops": product.flops, "seconds": best})
    for product, record in zip(products, records, strict=True):  # by the best that the machine did in the whole run
        limit = seconds_at_limit(product, machine)
        record |= {
            "limit_seconds": limit,
            "bound": "flops" if limit == product.flops / machine.flops else "bytes",
            "share": {name: limit / seconds for name, seconds in record["seconds"].items()},
            "peak_gflops": machine.flops / 1e9,
            "copy_gbytes": machine.bandwidth / 1e9,
            "threads": threads,
        }
    return records


def _wait(machine: Machine, rest: float) -> None:
    """Wait until the cores do what they did at best, at most :data:`PATIENCE` times, and then rest."""
    for _ in range(PATIENCE):
        if machine.measure_flops() >= QUIET * machine.flops:
            break
        time.sleep(0.1)
    time.sleep(rest)


def _turn(compute: Callable[[], object]) -> list[float]:
    """Return the seconds of each call for :data:`TURN`, after a quarter of that in which caches get warm."""
    begin, times = time.perf_counter(), []
    while not times or times[-1][0] < begin + 1.25 * TURN:
        start = time.perf_counter()
        compute()
        times.append((start, time.perf_counter() - start))
    return [seconds for start, seconds in times if start >= begin + TURN / 4] or [seconds for _, seconds in times[-1:]]


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Tabulate the records of one run."""
    first = records[0]
    peak, copies = first["peak_gflops"], first["copy_gbytes"]
    result = Table(title=f"{first['threads']} threads; peak {peak:.0f} GFLOP/s, copies {copies:.1f} GB/s")
    result.add_column("layer", no_wrap=True)
    result.add_column("product", no_wrap=True)
    for name in ("us", "GFLOP/s", "PyTorch's", "x PyTorch", "bound by", "of limit", "PyTorch's"):
        result.add_column(name, justify="right", no_wrap=True)
    for r in records:
        own, peer = r["seconds"]["ours"], r["seconds"]["torch"]
        result.add_row(
            r["layer"],
            r["form"],
            f"{1e6 * own:.1f}",
            *(f"{r['flops'] / seconds / 1e9:.0f}" for seconds in (own, peer)),
            f"{peer / own:.2f}",
            r["bound"],
            *(f"{100 * share:.0f} %" for share in r["share"].values()),
        )
    return result


@app.command()
def main(
    only: Annotated[
        list[str] | None, typer.Option(help="Part of a layer's and product's name; any of several.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="For both; all cores without.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How many turns each has.")] = 5,
    json_output: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure products, and print a table."""
    chosen = [each for each in PRODUCTS if not only or any(part in each.name for part in only)]
    if not chosen:
        raise typer.BadParameter(f"no product has {only} in its name; there are {', '.join(p.name for p in PRODUCTS)}")
    records = measure(chosen, threads or len(os.sched_getaffinity(0)), rounds)
    console.print(table(records))
    if json_output is not None:
        json_output.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    app()
