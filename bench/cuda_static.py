"""Compiles every kernel of training steps for CUDA, without a GPU, and reads what became of them.

    python bench/cuda_static.py [--model bert] [--arch sm_87] [--batch 8] [--precision bfloat16] [--json out.json]

For sm_75 and later the texts go through `nvcc`, for older GPUs through NVRTC 12 and the `ptxas` of the wheel
`nvidia-cuda-nvcc-cu12`. `ptxas -v` tells registers, spills and shared memory; instructions are counted in the
disassembly of `cuobjdump` (wheels `nvidia-cuda-cuobjdump`, `nvidia-cuda-nvdisasm`), or in PTX before sm_75. *Products*
are the device functions of kernels whose main block is a matrix product or a convolution. As in a program, a kernel
that spills is compiled again for one block a core. The exit code is 1 if a product spills then.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sysconfig
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from step_models import NETWORKS, exported
from tvm.target import Target

import pock_tvm as pock
from schedules.gpu.text.cubin import machine_code, with_one_block
from schedules.gpu.traits import GpuTraits, traits_of

NVIDIA = Path(sysconfig.get_path("purelib")) / "nvidia"
PTXAS, CUOBJDUMP = NVIDIA / "cuda_nvcc/bin/ptxas", NVIDIA / "cu13/bin/cuobjdump"
"""Tools of NVIDIA's wheels."""
PRODUCT = re.compile(r'"pock\.(matmul|(depthwise_)?conv2d)')
"""Rule of a product's main block, in a kernel's definition."""
ENTRY = re.compile(r"Compiling entry function '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
SASS_FUNCTION = re.compile(r"\s*Function : (\w+)")
PTX_FUNCTION = re.compile(r"\.entry (\w+)\(")
INSTRUCTIONS = {
    "tensor": re.compile(r"\b(HMMA|IMMA|DMMA|BMMA|HGMMA|IGMMA)\b|\b(wmma\.mma|mma\.sync|wgmma\.mma)"),
    "wide": re.compile(
        r"\bLD[GS]?\.(\S*\.)?128\b|\bld\.(global|shared)(\.nc)?\.v4\.[fub]32|\bld\.(global|shared)\S*\.v2\.[fub]64"
    ),
    "loads": re.compile(r"\bLD[GS]?\.|\bLDS\b|\bld\.(global|shared)\b"),
    "asynchronous": re.compile(r"\bLDGSTS\b|\bcp\.async\.c[ag]\b"),
}
"""Instructions of matrix units, loads of 128 bits, all loads from global and shared memory, and copies from global to
shared memory beside the threads: SASS and PTX."""


@dataclass
class Function:
    """A device function as it was compiled."""

    network: str
    architecture: str
    kernel: str
    symbol: str
    is_product: bool
    calls: int
    """Calls of its kernel in a step."""
    flops: int
    """Of a call of its kernel."""
    one_block: bool = False
    """Whether it is compiled for one block a core: it spilled otherwise."""
    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    instructions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(INSTRUCTIONS, 0))


def compiled(network: str, architecture: str, batch: int, precision: str) -> pock.Program:
    """Compile a network's full training step for an architecture."""
    optimizer = pock.SGD(momentum=0.9) if NETWORKS[network].reads == "images" else pock.AdamW()
    return pock.compile(
        exported(network, batch), loss=NETWORKS[network].loss, optimizer=optimizer, batch_norm="frozen", check=False,
        batch=batch if network == "mcunet" else None,  # its file has any batch
        target={"kind": "cuda", "arch": architecture}, precision=precision,
    )  # fmt: skip


def functions_of(network: str, architecture: str, program: pock.Program) -> tuple[list[Function], dict[str, str]]:
    """List the device functions of a program, and the texts of its kernels by name."""
    calls = Counter(call[0] for call in program.manifest["entries"]["train_step"]["calls"])
    found, texts = [], {}
    with zipfile.ZipFile(io.BytesIO(bytes(program.kernels))) as archive:
        for kernel, cost in program.manifest["kernels"].items():
            if not calls[kernel]:
                continue
            record = json.loads(archive.read(f"{kernel}.o"))
            is_product = bool(PRODUCT.search(archive.read(f"{kernel}.json").decode()))
            texts[kernel] = record["text"]
            found += [
                Function(network, architecture, kernel, symbol, is_product, calls[kernel], cost["flops"])
                for symbol, *_ in record["launches"]
            ]
    return found, texts


def joined(texts: Iterable[str]) -> list[str]:
    """Join texts that begin with the same declarations."""
    parts: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        at = text.index('extern "C"')
        parts[text[:at]].append(text[at:])
    return [head + "\n".join(bodies) for head, bodies in parts.items()]


def run(*command: Any) -> str:
    """Run a command, and return what it says."""
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} fails: {done.stderr.strip()[:2000]}")
    return done.stderr + done.stdout


def assembled(text: str, architecture: str, folder: Path) -> tuple[str, str]:
    """Compile a text. Return what ``ptxas`` says, and the assembly."""
    source, cubin = folder / "kernels.cu", folder / "kernels.cubin"
    if int(architecture[3:]) >= 75:
        source.write_text(text)
        said = run("nvcc", "-cubin", f"-arch={architecture}", "-std=c++17", "-Xptxas", "-v", source, "-o", cubin)
        return said, run(CUOBJDUMP, "-sass", cubin)
    ptx = machine_code(text, architecture.replace("sm", "compute")).rstrip(b"\0")
    (folder / "kernels.ptx").write_bytes(ptx)
    return run(PTXAS, "-v", f"-arch={architecture}", folder / "kernels.ptx", "-o", cubin), ptx.decode()


def read(functions: Sequence[Function], said: str, assembly: str) -> None:
    """Fill in what a compiler says of functions."""
    known = {function.symbol: function for function in functions}
    at: Function | None = None
    for line in said.splitlines():
        if entry := ENTRY.search(line):
            at = known.get(entry[1])
        if at is None:
            continue
        if spills := SPILLS.search(line):
            at.spilled_bytes = sum(map(int, spills.groups()))
        if used := USED.search(line):
            at.registers = int(used[1])
            at.shared_bytes = int(shared[1]) if (shared := SHARED.search(line)) else 0
    at = None
    for line in assembly.splitlines():
        if entry := SASS_FUNCTION.match(line) or PTX_FUNCTION.search(line):
            at = known.get(entry[1])
        elif at is not None:
            for kind, pattern in INSTRUCTIONS.items():
                at.instructions[kind] += bool(pattern.search(line))


def traits(architecture: str) -> GpuTraits:
    """Return what schedules ask of an architecture: the texts of those with the same traits are the same."""
    return replace(traits_of(Target({"kind": "cuda", "arch": architecture})), architecture="")


def measure(network: str, architecture: str, program: pock.Program) -> tuple[list[Function], float]:
    """Compile a network's kernels, read them, and return how long the compilers of CUDA took, in seconds."""
    functions, texts = functions_of(network, architecture, program)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for text in joined(texts.values()):
            read(functions, *assembled(text, architecture, Path(folder)))
        spilled = {each.kernel for each in functions if each.spilled_bytes}
        again = [each for each in functions if each.kernel in spilled]
        for each in again:
            each.one_block, each.instructions = True, dict.fromkeys(INSTRUCTIONS, 0)
        for text in joined(with_one_block(texts[kernel]) for kernel in spilled):
            read(again, *assembled(text, architecture, Path(folder)))
    missing = [function.symbol for function in functions if not function.registers]
    if missing:
        raise SystemExit(f"{len(missing)} functions were not compiled, among them {missing[0]}")
    return functions, time.perf_counter() - start


def table() -> Table:
    """Build the table of all networks and architectures, without rows."""
    found = Table()
    for column in ("network", "arch", "functions"):
        found.add_column(column)
    for column in (
        "products", "for one block", "spill bytes", "registers", "shared KiB", "with 128-bit loads", "128-bit of loads",
        "tensor cores", "copies", "other spill bytes", "other registers", "seconds",
    ):  # fmt: skip
        found.add_column(column, justify="right")
    return found


def row(functions: Sequence[Function], seconds: float) -> list[str]:
    """Sum up the functions of a network for an architecture."""
    products, others = ([each for each in functions if each.is_product is kind] for kind in (True, False))
    wide, loads, tensor, copies = (
        sum(each.instructions[kind] for each in products) for kind in ("wide", "loads", "tensor", "asynchronous")
    )
    return [
        NETWORKS[functions[0].network].title,
        functions[0].architecture,
        str(len(functions)),
        str(len(products)),
        str(sum(each.one_block for each in products)),
        str(sum(each.spilled_bytes for each in products)),
        str(max(each.registers for each in products)),
        f"{max(each.shared_bytes for each in products) / 1024:.1f}",
        str(sum(each.instructions["wide"] > 0 for each in products)),
        f"{wide} / {loads}",
        f"{tensor} in {sum(each.instructions['tensor'] > 0 for each in products)}",
        str(copies),
        str(sum(each.spilled_bytes for each in others)),
        str(max(each.registers for each in others)),
        f"{seconds:.0f}",
    ]


def main(
    model: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(NETWORKS)}; may be repeated.")] = None,
    arch: Annotated[list[str] | None, typer.Option(help="sm_53, sm_72, sm_87, sm_90, …; may be repeated.")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json_output: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Compile the kernels, and print a row for each network and architecture."""
    if shutil.which("nvcc") is None:
        raise SystemExit("nvcc is not on the PATH: put CUDA's bin folder there")
    found, records = table(), []
    for network in model or ("mobilenetv2", "bert", "llama"):
        programs: dict[GpuTraits, pock.Program] = {}
        for architecture in arch or ("sm_87", "sm_90", "sm_53", "sm_72"):
            if traits(architecture) not in programs:
                programs[traits(architecture)] = compiled(network, architecture, batch, precision)
            functions, seconds = measure(network, architecture, programs[traits(architecture)])
            found.add_row(*row(functions, seconds))
            records += [asdict(each) for each in functions]
            if json_output is not None:
                json_output.write_text(json.dumps(records, indent=1))
    Console(width=160).print(found)
    if any(each["is_product"] and each["spilled_bytes"] for each in records):
        raise SystemExit("products spill")


if __name__ == "__main__":
    typer.run(main)
