"""Compiles what `on_gpu.py` runs on a machine with a GPU but without TVM: programs, and what they have to give.

    python bench/on_gpu_programs.py [--small] [--folder .gpu]

Numeric cases are the rows of `tests/numeric/test_layers.py`: a program for the GPU, three batches, and the losses and
weights of the same steps on this machine's CPU. Training steps are saved without weights, which both sides there make
from a seed. Matrix products are libraries of one kernel. `--small` compiles a few small ones for OpenCL: a dry run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from on_gpu import DTYPES, Product, networks_of
from step_models import arguments
from tvm import te

import pock_tvm as pock
from pock_tvm.compiler.kernel_builder import KernelBuilder
from pock_tvm.compiler.launches import pack_launches
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.device.losses import Loss
from relay_passes.kernels.narrow_kernel import narrow_kernel
from schedules.kernels.matmul import matmul

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.numeric.test_layers import ROWS, Row  # noqa: E402

STEPS, RATE = 3, 1e-2
LIMIT = 64 * 2**20
"""Bytes that can be carried to the other machine."""
SIZES = [(size, size, size, transposed) for size in (1024, 2048, 4096) for transposed in ("nn", "nt", "tn")] + [
    (1024, 3072, 768, "nt"),
    (768, 3072, 1024, "tn"),
    (2048, 32000, 768, "nt"),
]
"""Squares, and layers of BERT and Llama at batch 8: forward, weight gradient, the vocabulary."""
SMALL_SIZES = [(48, 40, 56, transposed) for transposed in ("nn", "nt", "tn")]


def case(row: Row, number: int, target: str, folder: Path) -> None:
    """Write a numeric case: its program, and what it gives on the CPU."""
    torch.manual_seed(number)
    rng = np.random.default_rng(number)
    exported = torch.export.export(row.make().eval(), (torch.randn(row.shape),))
    options: dict[str, Any] = {
        "scheme": pock.Scheme(row.scheme), "loss": Loss("mse"), "optimizer": pock.SGD(momentum=0.9), "check": False,
        "batch_norm": "frozen",
    }  # fmt: skip
    host = pock.compile(exported, **options)
    shape, _ = host.tensor("target")
    batches = [
        (rng.standard_normal(row.shape).astype("float32"), rng.standard_normal(shape).astype("float32"))
        for _ in range(STEPS)
    ]
    trainer = pock.Trainer(host)
    losses = [trainer.step(x, y, lr=RATE) for x, y in batches]
    found = {f"weight.{name}": weight for name, weight in trainer.weights().items()}
    for at, (x, y) in enumerate(batches):
        found |= {f"x{at}": x, f"y{at}": y}
    np.savez(folder / f"{number}.npz", losses=losses, predicted=_first(trainer.predict(batches[0][0])), **found)
    pock.compile(exported, target=target, **options).save(folder / f"{number}.pock", slim=True)


def _first(outputs: Any) -> np.ndarray:
    return outputs[0] if isinstance(outputs, tuple) else outputs


def step(name: str, small: bool, batch: int, dtype: str, target: str, folder: Path) -> None:
    """Write a network's training step in a precision, without its weights."""
    network = networks_of(small)[name]
    model = network.build()
    tensors = {key: torch.from_numpy(array) for key, array in network.data(batch)[0].items()}
    exported = torch.export.export(model, *arguments(model, tensors), strict=False)
    optimizer = pock.SGD(momentum=0.9) if network.reads == "images" else pock.AdamW()
    program = pock.compile(
        exported, target=target, loss=network.loss, optimizer=optimizer, batch_norm="frozen", check=False,
        precision=dtype,
    )  # fmt: skip
    dataclasses.replace(program, weights={}).save(folder / f"{name}-{dtype}.pock", slim=True)


def product(each: Product, builder: KernelBuilder, folder: Path) -> None:
    """Write the library of a matrix product."""
    shapes = each.shapes
    operands = [te.placeholder(shape, "float32", name) for name, shape in zip("ab", shapes, strict=True)]
    across = {f"transpose_{name}": letter == "t" for name, letter in zip("ab", each.transposed, strict=True)}
    func = te.create_prim_func([*operands, matmul(*operands, **across)])
    if each.dtype != "float32":
        func = narrow_kernel(func, range(3), each.dtype)
    func = func.with_attr("global_symbol", "product")
    codes = builder.codes([func], {})
    (folder / f"{each.name}.zip").write_bytes(pack_launches(codes, builder.target.kind.name))


def written(what: str, write: Callable[[], None]) -> bool:
    """Write something, and say how long it took; a failure is said, too, and leaves the rest to go on."""
    start = time.perf_counter()
    try:
        write()
    except pock.PockError as error:
        print(f"{what}: {error}", file=sys.stderr)
        return False
    print(f"{what}: {time.perf_counter() - start:.0f} s", flush=True)
    return True


def main() -> int:
    """Write all of it, and the list of jobs in the order of their worth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few small ones, for OpenCL")
    parser.add_argument("--folder", type=Path, default=Path(".gpu"))
    parser.add_argument("--model", action="append", help="only these networks")
    options = parser.parse_args()
    warnings.simplefilter("ignore", pock.PockWarning)
    small, target = options.small, "opencl" if options.small else "h200"
    shutil.rmtree(options.folder, ignore_errors=True)
    jobs: list[list[str]] = []
    for kind in ("case", "step", "product"):
        (options.folder / kind).mkdir(parents=True)
    for number, row in enumerate(ROWS[::14] if small else ROWS):
        if written(row.name, functools.partial(case, row, number, target, options.folder / "case")):
            jobs.append(["case", f"{number} {row.name}"])
    batch = 2 if small else 8
    for name in options.model or networks_of(small):
        ours = [
            f"ours {dtype}"
            for dtype in DTYPES
            if written(
                f"{name} {dtype}", functools.partial(step, name, small, batch, dtype, target, options.folder / "step")
            )
        ]
        jobs += [["step", f"{name} {system}"] for system in [*ours, *rivals(name, small)]]
    builder = KernelBuilder(resolve_target(target))
    for each in [Product(*sizes, dtype) for dtype in DTYPES for sizes in (SMALL_SIZES if small else SIZES)]:
        if written(each.name, functools.partial(product, each, builder, options.folder / "product")):
            jobs.append(["product", each.name])
    record = {"small": small, "batch": batch, "device": "opencl:0" if small else "cuda:0", "jobs": jobs}
    (options.folder / "jobs.json").write_text(json.dumps(record, indent=1))
    size = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    print(f"{len(jobs)} jobs, {size / 2**20:.1f} MiB in {options.folder}")
    return int(size > LIMIT)


def rivals(name: str, small: bool) -> list[str]:
    """List PyTorch's ways to take a network's step, and in which type."""
    layouts = ["channels_last"] if networks_of(small)[name].reads == "images" else []
    return [f"{way} {dtype}" for dtype in DTYPES for way in ("eager", *layouts, "compile")]


if __name__ == "__main__":
    sys.exit(main())
